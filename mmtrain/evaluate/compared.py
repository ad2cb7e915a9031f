"""A comparison of runs as a page, as CSV and as LaTeX. Computes nothing: numbers are `experiment.py`'s."""

import csv
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from mmtrain.evaluate import curves
from mmtrain.evaluate.experiment import Group, Row, groups, rows
from mmtrain.evaluate.report import TEMPLATE, replace_report
from mmtrain.evaluate.table import p_text
from mmtrain.run import Run

COLUMNS = ("number", "group", "n", "mean", "low", "high", "difference", "difference_low", "difference_high", "p_value")


_FOOT = (
    "<footer><p>Each number is the mean over the last tenth of a run. Intervals cover 95 % (Student’s t over seeds). "
    "Differences are from the first group, paired by seed, with a bootstrapped interval and a two-sided sign-flip test "
    "whose smallest p for n pairs is 2<sup>1−n</sup>; not corrected for the number of rows. Written by mmtrain.</p>"
    "</footer>"
)


def compare(runs: Sequence[Run], *, out: Path | None, table: Path | None, latex: Path | None) -> Path:
    """Write one page about several runs, and the table as CSV and LaTeX where it is asked for.

    Args:
        out: the page. None: ``reports/<first run>-and-<others>.html``.

    Raises:
        UserError: runs that cannot be compared, a file in the way.
    """
    found = groups(runs)
    made = rows(found)
    target = out if out is not None else Path("reports") / f"{runs[0].path.name}-and-{len(runs) - 1}.html"
    replace_report(target, page(found, made))
    if table is not None:
        table.write_text(as_csv(made), encoding="utf-8")
    if latex is not None:
        latex.write_text(as_latex(made), encoding="utf-8")
    return target


def as_csv(made: Sequence[Row]) -> str:
    """A line for each number of each group, at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in made:
        mine = row.interval
        facts = [row.number, row.group.label, mine.n, *(repr(v) for v in (mine.mean, mine.low, mine.high))]
        if row.against is None:
            writer.writerow([*facts, "", "", "", ""])
            continue
        difference = row.against.difference
        ends = (difference.mean, difference.low, difference.high, row.against.p_value)
        writer.writerow([*facts, *(repr(value) for value in ends)])
    return text.getvalue()


def as_latex(made: Sequence[Row]) -> str:
    """A ``tabular`` of means and intervals for ``booktabs``: groups down, numbers across."""
    names = list(dict.fromkeys(row.number for row in made))
    labels = list(dict.fromkeys(row.group.label for row in made))
    cells = {(row.group.label, row.number): row for row in made}
    lines = [f"\\begin{{tabular}}{{l{'r' * len(names)}}}", "\\toprule"]
    lines += [" & ".join(["", *(_tex(name) for name in names)]) + r" \\", "\\midrule"]
    for label in labels:
        told = [_tex_cell(cells.get((label, name))) for name in names]
        lines.append(" & ".join([_tex(label), *told]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in text).replace("~", r"\textasciitilde{}")


def _tex_cell(row: Row | None) -> str:
    if row is None:
        return "--"
    half = (row.interval.high - row.interval.low) / 2
    return f"${row.interval.mean:.4g}$" + (f" $\\pm {half:.2g}$" if math.isfinite(half) else "")


def page(found: Sequence[Group], made: Sequence[Row]) -> str:
    """The whole page."""
    count = sum(len(group.runs) for group in found)
    title = f"{count} runs in {len(found)} group{'s' if len(found) > 1 else ''}"
    parts = [
        f'<header><p class="eyebrow">mmtrain · comparison of runs</p><h1>{title}</h1></header>',
        f"<section><h2>Where they differ</h2>{_keys(found)}</section>",
        f"<section><h2>Numbers</h2>{_numbers(made)}</section>",
        f'<section><h2>Curves</h2><p>Means over seeds.</p><div class="curves">{_curves(found)}</div></section>',
        _FOOT,
    ]
    body = "\n".join(parts)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=f"{title} · mmtrain", body=body)


def _keys(found: Sequence[Group]) -> str:
    """The keys in which groups differ, and the runs of each."""
    names = list(found[0].keys)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in [*names, "seeds", "runs"])
    lines = []
    for i, group in enumerate(found):
        values = [escape(str(value)) for value in group.keys.values()]
        ids = " ".join(f'<span class="id">{run.run_id[:8]}</span>' for run in group.runs.values())
        cells = "".join(f"<td>{value}</td>" for value in [*values, ", ".join(map(str, group.runs)), ids])
        lines.append(f'<tr><th scope="row">{_swatch(i)}</th>{cells}</tr>')
    note = "" if names else "<p>In nothing but the seed.</p>"
    return (
        f'{note}<table class="result"><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def _swatch(i: int) -> str:
    return f'<span class="swatch" style="--tone:{curves.tone(i)}">{i + 1}</span>'


def _numbers(made: Sequence[Row]) -> str:
    places = {label: i for i, label in enumerate(dict.fromkeys(row.group.label for row in made))}
    heads = "".join(
        f'<th scope="col" class="n">{name}</th>' for name in ("n", "mean", "95 % interval", "difference", "p")
    )
    lines, before = [], ""
    for row in made:
        name = escape(row.number) if row.number != before else ""
        before, mine = row.number, row.interval
        ends = f"{mine.low:.4g} – {mine.high:.4g}" if math.isfinite(mine.low) else "one seed"
        change, p = "", ""
        if row.against is not None:
            difference = row.against.difference
            change = f"{difference.mean:+.3g} <small>{difference.low:+.3g} – {difference.high:+.3g}</small>"
            p = p_text(row.against.p_value).replace("<", "&lt; ")
        cells = "".join(f'<td class="n">{cell}</td>' for cell in (mine.n, f"{mine.mean:.4g}", ends, change, p))
        label = f"{_swatch(places[row.group.label])} {escape(row.group.label)}"
        lines.append(f'<tr><th scope="row">{name}</th><td>{label}</td>{cells}</tr>')
    return (
        f'<table class="result"><thead><tr><th></th><th scope="col">group</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _curves(found: Sequence[Group]) -> str:
    names = dict.fromkeys(name for group in found for drawn in group.drawn.values() for name in drawn)
    figures = []
    for i, name in enumerate(names):
        drawn = [(at, curve) for at, group in enumerate(found) if (curve := group.mean_curve(name)) is not None]
        figures.append(curves.overlay(name, drawn, first=i == 0))
    return "".join(figures)
