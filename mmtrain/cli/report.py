"""``mmtrain report``: one page of a run and its evaluation, or of several runs side by side."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb
from mmtrain.errors import UserError


def add(verbs: Any) -> None:
    report = add_verb(verbs, "report", _report, "write one self-contained HTML page about a run, or compare several")
    text = "runs by folder, the start of an id, `latest`, a tag, or a pattern; several are compared"
    report.add_argument("runs", metavar="RUN", nargs="+", help=text)
    text = "of one run: its evaluation (default: the newest in evaluations/)"
    report.add_argument("--evaluation", metavar="DIR", type=Path, help=text)
    report.add_argument("--out", metavar="FILE", type=Path, help="default: reports/ and the run's name")
    report.add_argument("--csv", metavar="FILE", type=Path, help="of several runs: every number, at full precision")
    report.add_argument("--latex", metavar="FILE", type=Path, help="of several runs: the table, for booktabs")


def _report(args: argparse.Namespace) -> None:
    from mmtrain.run import Run

    found = Run.find_all(args.runs)
    if len(found) > 1:
        from mmtrain.evaluate.compared import compare

        if args.evaluation is not None:
            raise UserError("--evaluation", f"{len(found)} runs", "one run", "report each by itself")
        print(compare(found, out=args.out, table=args.csv, latex=args.latex))
        return
    from mmtrain.evaluate.report import report

    if args.csv is not None or args.latex is not None:
        raise UserError("--csv, --latex", "one run", "several, to be compared", "its metrics.csv is a table already")
    print(report(str(found[0].path), evaluation=args.evaluation, out=args.out))
