"""The objective's loss on samples that training never sees, by which the best checkpoint is known."""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from mmtrain.data.stream import Stream
from mmtrain.objective.denoise import held_out
from mmtrain.rng import Rng
from mmtrain.sample.generate import evaluating
from mmtrain.train.held import computing
from mmtrain.train.module import TrainModule

SEED = 0
"""Of the order, noise and levels: the same for every run, so that losses of different seeds and objectives compare."""


class HeldOut:
    """Measures the exported weights (the moving average, if there is one) on the same batches with the same draws each
    time, and keeps ``heldout.csv``.

    Args:
        stream: the samples; in the order of `SEED`, from their beginning, whatever the run's own seed is.
        batch_size: over all ranks.
        batches: how many are measured.
        file: the table of steps and losses.
    """

    def __init__(self, stream: Stream, *, batch_size: int, batches: int, file: Path) -> None:
        self.stream, self.batch_size, self.batches, self.file = stream, batch_size, batches, file

    @torch.no_grad()
    def __call__(self, module: TrainModule, rank: int, world_size: int) -> float:
        """The mean loss, the same on every rank."""
        share = {"rank": rank, "world_size": world_size}
        loader = self.stream.loader(seed=SEED, batch_size=self.batch_size, steps=self.batches, **share)
        with evaluating(module.backbone), module.averaged(), computing(module.backbone):
            losses = [self._loss(module, batch) for batch in loader]
        total = torch.stack(losses).double().mean()
        if world_size > 1:
            distributed.all_reduce(total)
            total /= world_size
        if rank == 0:
            self._write(module.step, float(total))
        return float(total)

    def _loss(self, module: TrainModule, batch: Any) -> torch.Tensor:
        batch = batch.to(module.device)
        if hasattr(module.backbone, "schedule"):  # the same measure for every objective of a denoiser
            return held_out(module.backbone, batch, SEED, draws=1).mean().cpu()
        return module.objective(module.backbone, batch, Rng(SEED, 0, batch.positions)).per_sample.mean().cpu()

    def _write(self, step: int, loss: float) -> None:
        rows = list(csv.reader(self.file.open(newline=""))) if self.file.exists() else [["step", "loss"]]
        kept = [row for row in rows[1:] if int(row[0]) < step]  # steps of a resumed run are measured again
        with self.file.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([rows[0], *kept, [step, repr(loss)]])
