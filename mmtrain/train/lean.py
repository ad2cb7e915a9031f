"""What keeps Lightning's own work in a step small: one callback in the place of many, and a profiler that is nothing.

Lightning asks each callback at six places of a step, and enters its profiler's context around each question, also where
nothing is measured. What that costs is `make bench-step`'s first table.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.profilers import PassThroughProfiler

PASSED_ON = frozenset({"on_train_start", "on_train_batch_end", "on_exception", "teardown"})
_NOTHING: AbstractContextManager[None] = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Measures nothing, by one context that is always the same; Lightning's makes a generator forty times a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


class Together(pl.Callback):
    """Callbacks as one, which Lightning asks once.

    Args:
        parts: in the order in which they are called. They use no other hooks than `PASSED_ON`.
    """

    def __init__(self, parts: Sequence[pl.Callback]) -> None:
        self.parts = tuple(parts)
        for part in self.parts:
            unheard = hooks(part) - PASSED_ON
            assert not unheard, f"{type(part).__name__} is never asked {', '.join(sorted(unheard))}: pass it on here"

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for part in self.parts:
            part.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for part in self.parts:
            part.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        for part in self.parts:
            part.on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for part in self.parts:
            part.teardown(trainer, pl_module, stage)


def hooks(callback: pl.Callback) -> set[str]:
    """Those of Lightning's hooks that a callback has of its own."""
    names = [name for name, what in vars(pl.Callback).items() if callable(what) and not name.startswith("_")]
    return {name for name in names if getattr(type(callback), name) is not getattr(pl.Callback, name)}
