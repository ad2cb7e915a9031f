"""What watches a run: the log and its guard against NaN, checkpoints, the progress line."""

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmtrain.batch import Batch
from mmtrain.data.stream import Stream
from mmtrain.errors import UserError
from mmtrain.train import checkpoint
from mmtrain.train.module import TrainModule


class Log(pl.Callback):
    """Writes ``metrics.csv`` at full precision and the loggers every n steps, and stops at a loss that is not finite.

    Losses are fetched every n steps, all at once, so that no step waits for the device.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.pending: list[tuple[int, torch.Tensor, dict[str, torch.Tensor], list[str]]] = []
        self.shown: dict[str, float] = {}
        self.started, self.samples = time.perf_counter(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.started, self.samples = time.perf_counter(), 0
        if trainer.is_global_zero and self.path.exists():
            self._forget_after(pl_module.step)

    def _forget_after(self, step: int) -> None:
        """Drop the rows of steps that were logged, but not saved, before a resume: they are done again."""
        head, *rows = self.path.read_text().splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= step]
        self.path.write_text("".join([head, *kept]))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss = pl_module.outcome
        self.pending.append((pl_module.step, loss.per_sample.detach().mean(), loss.logs, batch.keys))
        self.samples += len(batch) * trainer.world_size
        if pl_module.step % self.every == 0 or pl_module.step == pl_module.steps:
            self.flush(trainer, pl_module)

    def flush(self, trainer: pl.Trainer, module: TrainModule) -> None:
        rows: list[dict[str, float]] = []
        steps = [step for step, *_ in self.pending]
        for step, loss, logs, keys in self.pending:
            value = float(loss)
            if not torch.isfinite(loss):
                raise UserError(
                    f"step {step}",
                    f"the loss is {value} on the samples {', '.join(keys)}",
                    "a finite loss",
                    "lower optim.lr, or look at these samples",
                )
            rows.append({"step": step, "loss": value, **{name: float(v) for name, v in logs.items()}})
        self.pending.clear()
        if not rows or not trainer.is_global_zero:
            return
        rate = self.samples / max(time.perf_counter() - self.started, 1e-9)
        self.started, self.samples = time.perf_counter(), 0
        self._write(rows)
        last = {name: value for name, value in rows[-1].items() if name != "step"}
        last["loss"] = sum(row["loss"] for row in rows) / len(rows)
        self.shown = {**last, "samples/s": rate, "lr": module.optim.rate(steps[-1] - 1, module.steps)}
        for logger in trainer.loggers:
            logger.log_metrics(self.shown, step=steps[-1])

    def _write(self, rows: list[dict[str, float]]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(rows[0])
            writer.writerows([[repr(v) for v in row.values()] for row in rows])


class Checkpoints(pl.Callback):
    """Saves every n optimizer steps and at the end. The log is written first, so that a saved step is a logged and a
    finite one."""

    def __init__(self, log: Log, folder: Path, run_id: str, every: int, keep: int, stream: Stream) -> None:
        self.log_, self.stream = log, stream
        self.folder, self.run_id, self.every, self.keep = folder, run_id, every, keep

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = pl_module.step == pl_module.steps
        if trainer.is_global_zero and (last or pl_module.step % self.every == 0):
            self.log_.flush(trainer, pl_module)
            checkpoint.save(pl_module, self.folder, self.run_id, self.keep, self.stream.replaced)


class Shown(pl.Callback):
    """The progress line: step, loss, samples per second, samples replaced, time left; plain lines where there is
    no terminal."""

    def __init__(self, log: Log, name: str, stream: Stream) -> None:
        self.log_, self.name, self.stream = log, name, stream
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.started, self.first = time.perf_counter(), pl_module.step
        if not self.console.is_terminal or not trainer.is_global_zero:
            return
        self.bar = Progress(
            TextColumn(self.name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.name, total=pl_module.steps, completed=pl_module.step, facts="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        shown = self.log_.shown
        facts = " ".join(f"{n} {shown[n]:.4g}" for n in shown if n != "lr")
        facts += f" bad {len(self.stream.replaced)}" if self.stream.replaced else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=pl_module.step, facts=facts)
        elif trainer.is_global_zero and (pl_module.step % self.log_.every == 0 or pl_module.step == pl_module.steps):
            spent = time.perf_counter() - self.started
            left = spent / max(pl_module.step - self.first, 1) * (pl_module.steps - pl_module.step)
            print(f"{self.name} {pl_module.step}/{pl_module.steps} {facts} left {left:.0f} s", flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
