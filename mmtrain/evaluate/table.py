"""From numbers per clip to a table: base and adapted paired by prompt, with intervals, and that table for a terminal.

Knows no metric by name. A number that does not apply (None) to one of two clips counts for neither.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mmtrain.evaluate.intervals import Interval, bootstrap, paired, wilson

ARMS = ("base", "adapted")
SIDES = (*ARMS, "difference")
PAIRS = "pairs"
"""The way of an alignment, which is asked pairs and not prompts."""

Row = dict[str, Any]
_EDGE = 5  # a share with fewer trues or falses than this has Wilson's interval


def interval(values: Sequence[float], *, seed: int) -> Interval:
    """95 % interval of a mean: bootstrapped; Wilson's for a share of booleans with fewer than five trues or falses,
    where the bootstrap is too narrow."""
    sample = np.asarray(values, np.float64)
    if all(isinstance(v, bool) for v in values) and min(sample.sum(), (1 - sample).sum()) < _EDGE:
        return wilson(sample)
    return bootstrap(sample, seed=seed)


def aggregate(clips: Sequence[Mapping[str, Any]], *, seed: int, lower_is_better: Iterable[str] = ()) -> list[Row]:
    """One row for each way, group and number, in the order in which they first come.

    Args:
        clips: each with ``way``, ``group``, of several seeds the ``owner`` that they share, and under ``base`` and
            ``adapted`` the ``numbers`` of one clip.
        seed: of the resampling.
        lower_is_better: the numbers of which less is more.
    """
    pairs: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = {}
    for i, clip in enumerate(clips):
        before, after = (clip[arm]["numbers"] for arm in ARMS)
        for name in before:
            found = pairs.setdefault((clip["way"], clip["group"], name), {})
            pair = before[name], after.get(name)
            if None not in pair:
                found.setdefault(clip.get("owner", str(i)), []).append(pair)
    lower = set(lower_is_better)
    return [_row(place, [*found.values()], seed, place[2] in lower) for place, found in pairs.items() if found]


def _row(place: tuple[str, str, str], prompts: list[list[tuple[float, float]]], seed: int, lower: bool) -> Row:
    """A row of each prompt's pairs; of several seeds their mean counts."""
    share = all(isinstance(value, bool) for pairs in prompts for pair in pairs for value in pair)
    single = all(len(pairs) == 1 for pairs in prompts)
    pairs = [found[0] if single else tuple(np.mean(found, axis=0)) for found in prompts]
    base, adapted = (list(side) for side in zip(*pairs, strict=True))
    compared = paired(np.asarray(base, np.float64), np.asarray(adapted, np.float64), seed=seed)
    way, group, number = place
    return {
        "way": way,
        "group": group,
        "number": number,
        "share": share,
        "better": "lower" if lower else "higher",
        "base": asdict(interval(base, seed=seed)),
        "adapted": asdict(interval(adapted, seed=seed)),
        "difference": asdict(compared.difference),
        "p_value": compared.p_value,
    }


def outcome(row: Row) -> str:
    """``better``, ``worse`` or ``unclear``: whether the difference is distinguishable from none at 5 %."""
    gain = row["difference"]["mean"] * (-1 if row["better"] == "lower" else 1)
    if row["p_value"] >= 0.05 or gain == 0:
        return "unclear"
    return "better" if gain > 0 else "worse"


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.2g}"


def between(row: Row, side: str) -> str:
    """Mean and interval of ``base``, ``adapted`` or ``difference``, shares in per cent: ``85 [75, 96]``."""
    scale, form = (100, ".0f") if row["share"] else (1, ".3g")
    sign = "+" if side == "difference" else ""
    mean, low, high = (format(scale * row[side][key], sign + form) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by way and group, in order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["way"], row["group"]), []).append(row)
    return found


def counted(way: str, count: int) -> str:
    """How many were asked, in words."""
    return f"{count} {'pairs' if way == PAIRS else 'prompts'}"


def label(row: Row, most: int) -> str:
    """A number's name, with how many clips it was told of where that is not ``most``."""
    n = row["base"]["n"]
    return row["number"] if n == most else f"{row['number']} (n = {n})"


def for_terminal(rows: Iterable[Row]) -> list[Table]:
    """A rich table for each way and group."""
    tables = []
    for (way, group), mine in groups(rows).items():
        most = max(row["base"]["n"] for row in mine)
        of = counted(way, most) if way == PAIRS else f"way {way} · {counted(way, most)}"
        title = f"{group} · {of} · mean [95 % interval], shares in %"
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True, min_width=20)
        for name in (*SIDES, "p"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in mine:
            colour = {"better": "green", "worse": "red", "unclear": "dim"}[outcome(row)]
            down = " ↓" if row["better"] == "lower" else ""
            cells = [escape(between(row, side)) for side in SIDES]
            cells[2] = f"[{colour}]{cells[2]}[/]"
            table.add_row(label(row, most) + down, *cells, p_text(row["p_value"]))
        tables.append(table)
    return tables
