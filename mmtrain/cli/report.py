"""``mmtrain report``: one page of a run and its evaluation."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb


def add(verbs: Any) -> None:
    report = add_verb(verbs, "report", _report, "write one self-contained HTML page about a run and its evaluation")
    report.add_argument("run_folder", metavar="RUN", help="a run's folder, the start of its id, or `latest`")
    report.add_argument("--evaluation", metavar="DIR", type=Path, help="default: the newest in evaluations/")
    report.add_argument("--out", metavar="FILE", type=Path, help="default: reports/ and the run's name")


def _report(args: argparse.Namespace) -> None:
    from mmtrain.evaluate.report import report

    print(report(args.run_folder, evaluation=args.evaluation, out=args.out))
