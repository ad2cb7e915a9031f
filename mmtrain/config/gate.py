"""The line of a gate, a threshold that an evaluation must pass. What it finds is judged in `evaluate/gates.py`.

A line is ``[group:] number [difference] >=|<= threshold``. Without a group it holds for every group that has the
number; ``difference`` is adapted minus base, else the adapted model's own mean counts. Shares are between 0 and 1.
"""

import re
from dataclasses import dataclass

from mmtrain.errors import UserError

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


def parse(text: str, where: str = "gate") -> Gate:
    """A gate from its line, which stands at ``where``.

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
        raise UserError(where, repr(text), wanted, "correct it") from error
    side = "difference" if found["change"] else "adapted"
    group = found["group"].strip() if found["group"] else None
    return Gate(text.strip(), found["number"].strip(), side, found["sign"] == ">=", limit, group)
