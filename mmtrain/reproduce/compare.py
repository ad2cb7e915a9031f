"""Two records of one computation: equal to the bit, equal within a tolerance, or different, and from which step on.

Numbers only: what may have caused a difference is `circumstances.py`'s.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["bitwise equal", "equal within tolerance", "different"]


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two records.

    Attributes:
        verdict: of all of it.
        steps: how many were compared.
        tolerance: largest relative difference of a loss that still counts as equal.
        began: first step at which any number or weight differs; None: at none.
        largest: largest relative difference; ``at`` its step and ``number`` its name.
        weights: steps at which weights were compared, and whether they were equal.
    """

    verdict: Verdict
    steps: int
    tolerance: float
    began: int | None
    largest: float
    at: int | None
    number: str | None
    weights: dict[int, bool]

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    then: Mapping[int, Mapping[str, str]],
    now: Mapping[int, Mapping[str, str]],
    digests_then: Mapping[int, str],
    digests_now: Mapping[int, str],
    *,
    steps: int,
    tolerance: float,
) -> Comparison:
    """Compare the steps 1 to ``steps`` of two tables of metrics, and digests where both have one.

    A step that one side lacks is a difference without measure (infinite).
    """
    largest, at, number, began = 0.0, None, None, None
    for step in range(1, steps + 1):
        ours, theirs = then.get(step, {}), now.get(step, {})
        for name in dict.fromkeys([*ours, *theirs]):
            far = _apart(ours.get(name), theirs.get(name))
            began = step if far > 0 and began is None else began
            if far > largest:
                largest, at, number = far, step, name
        if not ours or not theirs:
            largest, at, number, began = math.inf, step, "a step that is missing", began or step
    both = sorted(step for step in digests_then.keys() & digests_now.keys() if step <= steps)
    weights = {step: digests_then[step] == digests_now[step] for step in both}
    unequal = [step for step, equal in weights.items() if not equal]
    began = min([began or steps, *unequal]) if unequal or began else None
    verdict: Verdict = "different"
    if began is None:
        verdict = "bitwise equal"
    elif largest <= tolerance:
        verdict = "equal within tolerance"
    return Comparison(verdict, steps, tolerance, began, largest, at, number, weights)


def _apart(ours: str | None, theirs: str | None) -> float:
    """Relative difference of two written numbers; equal text is equal, whatever it says."""
    if ours == theirs:
        return 0.0
    if ours is None or theirs is None:
        return math.inf
    a, b = float(ours), float(theirs)
    if not math.isfinite(a) or not math.isfinite(b):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def said(found: Comparison) -> list[str]:
    """The verdict in words."""
    losses = f"losses of {found.steps} steps"
    checked = [str(step) for step in found.weights]
    weights = f"weights behind step {', '.join(checked)}" if checked else "no weights to compare"
    if found.verdict == "bitwise equal":
        return [f"bitwise equal: {losses}; {weights}"]
    unequal = [str(step) for step, equal in found.weights.items() if not equal]
    lines = [f"{found.verdict}: the difference begins at step {found.began} of {found.steps}"]
    if found.at is not None:
        measure = f"{found.largest:.3g} relative" if math.isfinite(found.largest) else "without measure"
        lines.append(f"largest: {measure}, {found.number} at step {found.at} (tolerance {found.tolerance:g})")
    if checked:
        lines.append(f"weights differ behind step {', '.join(unequal)}" if unequal else f"equal {weights}")
    return lines
