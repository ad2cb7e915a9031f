"""What watches a run: the log and its guard against NaN, checkpoints, the progress line."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed

from mmtrain.batch import Batch
from mmtrain.data.stream import Stream
from mmtrain.errors import Failure
from mmtrain.run import checkpoints
from mmtrain.train import checkpoint
from mmtrain.train.heldout import HeldOut
from mmtrain.train.loggers import Loggers
from mmtrain.train.module import TrainModule
from mmtrain.train.stop import Stop
from mmtrain.train.voice import Voice

MARKS = (1, 2, 5)
"""Times a power of ten: the steps at which ``digests.csv`` says what the weights were, for whoever repeats the run."""


class Log(pl.Callback):
    """Writes ``metrics.csv`` at full precision and the loggers every n steps, and stops at a loss that is not finite.

    Losses are fetched every n steps, all at once, so that no step waits for the device; those of several ranks are
    averaged then.
    """

    def __init__(self, path: Path, every: int, loggers: Loggers) -> None:
        self.path, self.every, self.loggers = path, every, loggers
        self.pending: list[tuple[int, torch.Tensor, dict[str, torch.Tensor], list[str]]] = []
        self.shown: dict[str, float] = {}
        self.unsaved: list[float] = []
        self.started, self.samples = time.perf_counter(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.started, self.samples = time.perf_counter(), 0
        if trainer.is_global_zero and self.path.exists():
            forget_after(self.path, pl_module.step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss = pl_module.outcome
        self.pending.append((pl_module.step, loss.per_sample.detach().mean(), loss.logs, batch.keys))
        self.samples += len(batch) * trainer.world_size
        if pl_module.step % self.every == 0 or pl_module.step == pl_module.steps:
            self.flush(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """A loss that is not finite, and was not fetched yet, came before whatever it led to. Raises Failure."""
        for step, loss, _, keys in self.pending:
            if not torch.isfinite(loss):
                raise _not_finite(step, float(loss), f"on the samples {', '.join(keys)}") from exception

    def flush(self, trainer: pl.Trainer, module: TrainModule) -> None:
        """Write what was not written yet. Raises Failure at a loss that is not finite."""
        if not self.pending:
            return
        rows = self._rows(trainer)
        self.unsaved += [row["loss"] for row in rows]
        if not trainer.is_global_zero:
            return
        rate = self.samples / max(time.perf_counter() - self.started, 1e-9)
        self.started, self.samples = time.perf_counter(), 0
        append(self.path, rows)
        last = {name: value for name, value in rows[-1].items() if name != "step"}
        last["loss"] = sum(row["loss"] for row in rows) / len(rows)
        last |= _by_noise(rows)
        step = int(rows[-1]["step"])
        self.shown = {**last, "samples/s": rate, "lr": module.optim.rate(step - 1, module.steps)}
        known = {name: value for name, value in self.shown.items() if not math.isnan(value)}
        self.loggers.each(lambda logger: logger.log_metrics(known, step=step))

    def _rows(self, trainer: pl.Trainer) -> list[dict[str, Any]]:
        """What is pending as rows of the table, averaged over ranks."""
        pending, self.pending = self.pending, []
        names = ["loss", *pending[0][2]]
        table = torch.stack([torch.stack([loss, *logs.values()]).double() for _, loss, logs, _ in pending]).cpu()
        own = table.clone()
        if trainer.world_size > 1:
            distributed.all_reduce(table)
            table /= trainer.world_size
        for (step, _, _, keys), mine, value in zip(pending, own[:, 0], table[:, 0], strict=True):
            if not torch.isfinite(value):
                told = f"on the samples {', '.join(keys)}" if not torch.isfinite(mine) else "on another rank"
                raise _not_finite(step, float(value), told)
        return [
            {"step": p[0], **dict(zip(names, row, strict=True))} for p, row in zip(pending, table.tolist(), strict=True)
        ]


def _not_finite(step: int, loss: float, where: str) -> Failure:
    fix = "lower optim.lr, or look at these samples; the last checkpoint is from before"
    return Failure(f"step {step}", f"the loss is {loss} {where}", "a finite loss", fix)


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table at full precision, with its head where it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(rows[0])
        writer.writerows([[v if isinstance(v, str) else repr(v) for v in row.values()] for row in rows])


def forget_after(path: Path, step: int) -> None:
    """Drop the rows of steps that were logged, but not saved, before a resume: they are done again."""
    lines = path.read_text().splitlines(keepends=True)
    kept = [row for row in lines[1:] if row.endswith("\n") and int(row.split(",", 1)[0]) <= step]
    path.write_text("".join([*lines[:1], *kept]))


class Marks(pl.Callback):
    """Notes the digest of what trains at a few steps, ever further apart."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and self.path.exists():
            forget_after(self.path, pl_module.step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = pl_module.step
        scale = 10 ** (len(str(step)) - 1)
        if step in [mark * scale for mark in MARKS]:
            digest = checkpoint.digest(pl_module)
            if trainer.is_global_zero:
                append(self.path, [{"step": step, "weights": digest}])


def _by_noise(rows: list[dict[str, float]]) -> dict[str, float]:
    """Losses by share of noise, averaged over the rows in which a sample had it; NaN where none had."""
    names = [name for name in rows[0] if name.startswith("noise ")]
    known = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in names}
    return {name: sum(values) / len(values) if values else math.nan for name, values in known.items()}


class Checkpoints(pl.Callback):
    """Saves every n optimizer steps, at the end, and when the run is asked to stop. The log is written first, so that a
    saved step is a logged and a finite one.

    Args:
        every, keep: steps between checkpoints, and how many of the newest are kept.
        until: the step behind which the run ends.
        best: ``loss`` (of training, since the last checkpoint) or ``heldout``: the checkpoint with the lowest is kept
            besides, and named in ``best.json``; None: none is.
        heldout: measured before the first step and at every checkpoint, or None.
        patience: checkpoints without a new best after which the run ends; None: it does not.

    Attributes:
        enough: whether it ended so.
    """

    def __init__(
        self,
        *,
        log: Log,
        stop: Stop,
        stream: Stream,
        voice: Voice,
        folder: Path,
        run_id: str,
        every: int,
        keep: int,
        until: int,
        best: str | None,
        heldout: HeldOut | None,
        patience: int | None,
    ) -> None:
        self.patience, self.enough = patience, False
        self.lowest: tuple[float, int] | None = None  # value and step, of this run's earlier processes too
        self.log_, self.stop, self.stream, self.voice, self.folder = log, stop, stream, voice, folder
        self.run_id, self.every, self.keep, self.until = run_id, every, keep, until
        self.best, self.heldout = best, heldout

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.heldout is not None and pl_module.step == 0:
            self.heldout(pl_module, trainer.global_rank, trainer.world_size)  # what the base makes of them
        best = checkpoints.best(self.folder)
        if best is not None and self.best is not None:
            known = json.loads((self.folder / checkpoints.BEST).read_text(encoding="utf-8"))
            self.lowest = (known[self.best], int(best.name.removeprefix("step-")))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = pl_module.step
        if step < self.until and step % self.every and not self.stop.asked:
            return
        self.log_.flush(trainer, pl_module)
        held = checkpoint.contents(pl_module)
        state = checkpoint.state_of(pl_module, self.run_id, self.stream.replaced)
        watched = self._watched(trainer, pl_module)
        if trainer.is_global_zero:
            written = checkpoint.write(self.folder, held, state)
            if self.best is not None and checkpoint.note_best(self.folder, written, self.best, watched[self.best]):
                self.voice(f"best so far at step {step}: {self.best} {watched[self.best]:.6g}", shown=False)
            checkpoint.prune(self.folder, self.keep)
        self.enough = self._enough(step, watched)
        if self.enough and step < self.until and self.lowest is not None:
            value, at = self.lowest
            self.voice(f"ended at step {step}: no {self.best} below {value:.6g} (step {at}) since")
        trainer.should_stop |= bool(self.stop.asked) or self.enough

    def _enough(self, step: int, watched: dict[str, float]) -> bool:
        """Whether the best was long ago; every rank finds the same."""
        if self.best is None or self.patience is None:
            return False
        if self.lowest is None or watched[self.best] < self.lowest[0]:
            self.lowest = (watched[self.best], step)
        return step - self.lowest[1] >= self.patience * self.every

    def _watched(self, trainer: pl.Trainer, module: TrainModule) -> dict[str, float]:
        """The numbers by which a checkpoint can be the best."""
        losses, self.log_.unsaved = self.log_.unsaved, []
        found = {"loss": sum(losses) / len(losses)} if losses else {}
        if self.heldout is not None:
            found["heldout"] = self.heldout(module, trainer.global_rank, trainer.world_size)
        return found


class Shown(pl.Callback):
    """The progress line: step, loss, samples per second, samples replaced, time left; plain lines where there is
    no terminal."""

    def __init__(self, log: Log, name: str, stream: Stream, voice: Voice) -> None:
        self.log_, self.name, self.stream, self.voice = log, name, stream, voice
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
        due = pl_module.step % self.log_.every == 0 or pl_module.step == pl_module.steps
        if self.bar is None and not due:
            return
        shown = self.log_.shown
        facts = " ".join(f"{n} {shown[n]:.4g}" for n in shown if n != "lr" and " " not in n)
        facts += f" bad {len(self.stream.replaced)}" if self.stream.replaced else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=pl_module.step, facts=facts)
        if trainer.is_global_zero and due:
            spent = time.perf_counter() - self.started
            left = spent / max(pl_module.step - self.first, 1) * (pl_module.steps - pl_module.step)
            line = f"{self.name} {pl_module.step}/{pl_module.steps} {facts} left {left:.0f} s"
            self.voice(line, shown=False)
            if self.bar is None:
                print(line, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
