"""Gates: thresholds that an evaluation must pass. A gate is a line such as ``motion >= 0.5``; a failed one says by how
much, and decides the exit status of `mmtrain evaluate`.

A line is ``[group:] number [difference] >=|<= threshold``. Without a group it holds for every group that has the
number; ``difference`` is adapted minus base, else the adapted model's own mean counts. Shares are between 0 and 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mmtrain.errors import UserError
from mmtrain.evaluate.table import Row

_LINE = re.compile(
    r"(?:(?P<group>[^:<>]+):)?\s*(?P<number>[^:<>]+?)(?P<change>\s+difference)?\s*(?P<sign>[<>]=)\s*(?P<limit>\S+)"
)


@dataclass(frozen=True)
class Gate:
    """One threshold.

    Attributes:
        text: as it was given.
        number: of a metric.
        side: ``adapted`` or ``difference``, a row's column.
        least: whether the limit is the least that passes, else the most.
        limit: the threshold.
        group: of prompts, or None for all.
    """

    text: str
    number: str
    side: str
    least: bool
    limit: float
    group: str | None = None


@dataclass(frozen=True)
class Passage:
    """What a gate found in one row of the table.

    Attributes:
        gate: its text.
        way, group: of the row.
        value: the mean.
        margin: how far it is on the right side of the limit; below 0 it failed by that much.
        sure: whether the whole 95 % interval is on the side that the mean is on.
    """

    gate: str
    way: str
    group: str
    value: float
    margin: float
    sure: bool

    @property
    def passed(self) -> bool:
        return self.margin >= 0


def parse(text: str) -> Gate:
    """A gate from its line.

    Raises:
        UserError: it is none.
    """
    found = _LINE.fullmatch(text.strip())
    wanted = "a line such as `motion >= 0.5` or `one object: background difference >= -0.05`"
    try:
        if found is None:
            raise ValueError
        limit = float(found["limit"])
    except ValueError as error:
        raise UserError("gate", repr(text), wanted, "correct it") from error
    side = "difference" if found["change"] else "adapted"
    group = found["group"].strip() if found["group"] else None
    return Gate(text.strip(), found["number"].strip(), side, found["sign"] == ">=", limit, group)


def from_file(path: Path) -> list[str]:
    """The lines of a YAML file: a list, or a mapping whose ``gates`` is one.

    Raises:
        UserError: no such file, or no list of lines in it.
    """
    wanted = "a YAML list of lines such as `motion >= 0.5`, or one under `gates:`"
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(str(path), f"unreadable ({str(error).splitlines()[0]})", wanted, "check the path") from error
    lines = held.get("gates") if isinstance(held, Mapping) else held
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise UserError(str(path), f"{type(lines).__name__}", wanted, "correct it")
    return lines


def judged(gates: Sequence[Gate], table: Sequence[Row]) -> list[Passage]:
    """What each gate finds in each row that it speaks of; nothing, for a gate that no row answers."""
    return [_passage(gate, row) for gate in gates for row in _rows(gate, table)]


def refuse_silent(gates: Sequence[Gate], table: Sequence[Row]) -> None:
    """Raises UserError for a gate that no row answers: it would pass by saying nothing."""
    for gate in gates:
        if not _rows(gate, table):
            known = ", ".join(dict.fromkeys(row["number"] for row in table)) or "none"
            came = f"no number {gate.number!r}" + (f" in {gate.group!r}" if gate.group else "")
            wanted, fix = f"one of those measured: {known}", "correct it, or add its metric with --metrics"
            raise UserError(f"gate `{gate.text}`", came, wanted, fix)


def _rows(gate: Gate, table: Sequence[Row]) -> list[Row]:
    return [row for row in table if row["number"] == gate.number and gate.group in (None, row["group"])]


def _passage(gate: Gate, row: Row) -> Passage:
    mean, low, high = (row[gate.side][end] for end in ("mean", "low", "high"))
    sign = 1 if gate.least else -1
    margin = sign * (mean - gate.limit)
    sure = all((sign * (end - gate.limit) >= 0) == (margin >= 0) for end in (low, high))
    return Passage(gate.text, row["way"], row["group"], mean, margin, sure)


def told(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """For ``evaluation.json``."""
    return [{**asdict(passage), "passed": passage.passed} for passage in passages]


def lines(passages: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line each for a terminal."""
    made = []
    for each in passages:
        word = "passed" if each["passed"] else "FAILED"
        doubt = "" if each["sure"] else "; its interval holds the limit, so asking more may turn it"
        by = f"{abs(each['margin']):.3g} {'to spare' if each['passed'] else 'short'}"
        made.append(f"{word}  {each['gate']}  ({each['group']}, way {each['way']}: {each['value']:.3g}, {by}{doubt})")
    return made
