"""What Lightning and our module, log and progress line add to a step that does nearly nothing: a layer of 8 × 8."""

import itertools
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.report import Report
from benchmarks.rounds import Arm, Gate, rounds, rounds_asked
from mmtrain.batch import Batch, Loss

ROUNDS, STEPS, AIM_MS = rounds_asked(9), 150, 1.5


class Layer(nn.Module):
    """Backbone and adapter in one: everything trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    @property
    def network(self) -> nn.Module:
        return self.layer

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.layer.named_parameters())


def objective(backbone: Any, batch: Batch, rng: Any) -> Loss:
    found = backbone.layer(batch.encoded["x"]).square().mean(1)
    return Loss(found, {"denoise": found.detach().mean()})


def bare() -> Arm:
    def arm(gate: Gate) -> None:
        model = Layer()
        weights = list(model.parameters())
        optimizer, x = torch.optim.AdamW(weights, lr=1e-3, fused=True), torch.ones(4, 8)
        for step in itertools.count():
            loss = model.layer(x).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                float(loss)
            gate()

    return arm


def ours(folder: Path) -> Arm:
    def arm(gate: Gate) -> None:
        import logging

        import pytorch_lightning as pl

        from mmtrain.train.callbacks import Log, Marks, Shown
        from mmtrain.train.lean import NoProfiler, Together
        from mmtrain.train.loggers import Loggers
        from mmtrain.train.module import TrainModule
        from mmtrain.train.optim import AdamW
        from mmtrain.train.stop import Stop
        from mmtrain.train.voice import Voice

        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        TrainModule.on_train_batch_end = lambda self, *args: gate()  # type: ignore[method-assign]
        model, voice, steps = Layer(), Voice(), 100_000
        module = TrainModule(
            backbone=model, adapters={"it": model}, objective=objective, optim=AdamW(lr=1e-3), seed=0, steps=steps
        )
        log, stream = Log(folder / "metrics.csv", 10, Loggers({}, folder, voice)), SimpleNamespace(replaced={})
        watching: Any = [Stop(), log, Marks(folder / "digests.csv"), Shown(log, "bench", stream, voice)]  # type: ignore[arg-type]
        off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        off |= {"enable_model_summary": False, "log_every_n_steps": 10**9, "profiler": NoProfiler()}
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, callbacks=[Together(watching)], **off)
        batch = Batch(list("abcd"), [0, 1, 2, 3], ["a"] * 4, None, {"x": torch.ones(4, 8)})
        loader: Any = [batch] * steps
        trainer.fit(module, torch.utils.data.DataLoader(loader, batch_size=None))

    return arm


def trivial(report: Report, folder: Path) -> None:
    """The table, and what is added in milliseconds."""
    found = rounds({"bare loop": bare(), "mmtrain": ours(folder)}, count=ROUNDS, units=STEPS)
    report.arms("a step that does nearly nothing", found, unit="step")
    for clock in ("wall", "cpu"):
        of = {name: statistics.median(getattr(seconds, clock)) for name, seconds in found.items()}
        added = 1e3 * (of["mmtrain"] - of["bare loop"])
        report.parts[f"added to a trivial step, ms, {clock}"] = added
        report.say(f"added to a trivial step, {clock}: {added:.2f} ms (aim: at most {AIM_MS})")
