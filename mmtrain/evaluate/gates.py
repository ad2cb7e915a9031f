"""Gates: thresholds that an evaluation must pass. A gate is a line such as ``motion >= 0.5``; a failed one says by how
much, and decides the exit status of `mmtrain evaluate`. Its grammar is `config/gate.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mmtrain.config.gate import Gate
from mmtrain.errors import UserError
from mmtrain.evaluate.table import Row


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
