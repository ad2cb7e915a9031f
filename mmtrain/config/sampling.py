"""How a recipe says that its model is to be sampled: ``sampling``, a few of the sampler's own arguments by name."""

from collections.abc import Mapping
from typing import Any

from mmtrain.errors import UserError

STEPS, GUIDANCE = "num_inference_steps", "guidance_scale"


def fault(given: Mapping[str, Any], where: str) -> UserError | None:
    """What is wrong with such a mapping, or None; a key that is null says nothing."""
    for name, value in given.items():
        if name not in (STEPS, GUIDANCE):
            return UserError(f"{where}.{name}", "no such key", f"{STEPS} or {GUIDANCE}", "correct it")
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == STEPS and not (number and value >= 1 and value % 1 == 0):
            return UserError(f"{where}.{name}", repr(value), "a whole number above 0", "correct it")
        if not number or not abs(value) < float("inf"):
            return UserError(f"{where}.{name}", repr(value), "a number", "correct it")
    return None
