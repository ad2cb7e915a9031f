"""Laws of what stands between Lightning and a step: every hook reaches every callback, and steps are counted as it
does."""

from contextlib import nullcontext
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from mmtrain.batch import Batch, Loss
from mmtrain.train.lean import PASSED_ON, NoProfiler, Together, hooks
from mmtrain.train.module import TrainModule
from mmtrain.train.optim import AdamW


class Layer(nn.Module):
    """Backbone and adapter in one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(4, 4)

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())


def objective(backbone: Any, batch: Batch, rng: Any) -> Loss:
    return Loss(backbone.network(batch.encoded["x"]).square().mean(1))


class Noted(pl.Callback):
    def __init__(self, name: str, notes: list[tuple[str, str, Any]]) -> None:
        self.name, self.notes = name, notes

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.notes.append((self.name, "on_train_start", pl_module.step))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert pl_module.step == 3 + trainer.global_step == 4 + batch_idx
        self.notes.append((self.name, "on_train_batch_end", pl_module.step))

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.notes.append((self.name, "on_exception", str(exception)))

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.notes.append((self.name, "teardown", stage))


@pytest.mark.parametrize("ending", ["on_exception", "teardown"])
def test_each_hook_reaches_each_callback_in_order_and_steps_are_lightnings(ending: str):
    notes: list[tuple[str, str, Any]] = []
    torch.manual_seed(0)
    layer = Layer()
    module = TrainModule(
        backbone=layer, adapters={"it": layer}, objective=objective, optim=AdamW(lr=1e-3), seed=0, steps=9
    )
    module.step = 3
    batches = [Batch(["a"], [0], ["a"], None, {"x": torch.ones(1, 4)})] * 3  # one is asked for ahead

    def drawn() -> Any:
        yield from batches
        raise OSError("the shard is gone")

    both = Together([Noted("one", notes), Noted("two", notes)])
    assert hooks(both) == PASSED_ON
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    off |= {"enable_model_summary": False, "max_steps": 9 if ending == "on_exception" else 2}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[both], profiler=NoProfiler(), **off)
    with pytest.raises(OSError, match="the shard is gone") if ending == "on_exception" else nullcontext():
        trainer.fit(module, torch.utils.data.DataLoader(_Stream(drawn), batch_size=None))
    last = {"on_exception": "the shard is gone", "teardown": "fit"}[ending]
    called = [("on_train_start", 3), ("on_train_batch_end", 4), ("on_train_batch_end", 5), (ending, last)]
    assert notes == [(who, *call) for call in called for who in ("one", "two")]
    assert module.step == 5


class _Stream(torch.utils.data.IterableDataset[Batch]):
    def __init__(self, drawn: Any) -> None:
        self.drawn = drawn

    def __iter__(self) -> Any:
        return self.drawn()


def test_a_hook_that_would_never_be_called_is_refused():
    class Deaf(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
            raise AssertionError("never")

    with pytest.raises(AssertionError, match="Deaf is never asked on_after_backward"):
        Together([Deaf()])
    assert hooks(Noted("x", [])) == PASSED_ON
