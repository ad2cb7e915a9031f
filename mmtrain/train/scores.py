"""Scores of an alignment while it trains, on held-out pairs and by the metrics of `mmtrain evaluate`."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmtrain.backbone.aligned import Aligned
from mmtrain.errors import UserError
from mmtrain.evaluate import pairs
from mmtrain.evaluate.alignment import embedding_metric, means, told_apart
from mmtrain.evaluate.embedded import Item, embedded
from mmtrain.sample.generate import evaluating
from mmtrain.train.loggers import Loggers
from mmtrain.train.module import TrainModule


class Scores(pl.Callback):
    """Scores the weights that would be exported every n steps and at the end, into ``scores.csv`` and the loggers.

    Args:
        every_n_steps: optimizer steps between scores.
        prompts_from: ``heldout`` for scenes of the world that training never sees, else shards of pairs.
        count: pairs, each a candidate for all others.
        metrics: names in ``conf/metric/``, of embeddings.
        loggers: that are told; passed by `fit`.
        seed: of scenes and wordings.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        prompts_from: str,
        count: int,
        metrics: list[str],
        loggers: Loggers,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 1 or count < 2:
            came = f"every_n_steps {every_n_steps}, count {count}"
            raise UserError("preview", came, "at least 1, and 2 pairs", "correct them")
        self.every, self.prompts_from, self.count, self.seed = every_n_steps, prompts_from, count, seed
        self.metrics, self.loggers = [embedding_metric(name) for name in metrics], loggers
        self.items: list[Item] = []
        self.file: Path | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        backbone = pl_module.backbone
        if not isinstance(backbone, Aligned):
            wanted = "a backbone that aligns text and pictures"
            raise UserError("preview", f"a {type(backbone).__name__}", wanted, "set preview=null")
        self.file = Path(str(trainer.default_root_dir)) / "scores.csv"
        length, apart = backbone.num_frames, told_apart(self.metrics)
        self.items, _ = pairs.asked(
            self.prompts_from, count=self.count, seed=self.seed, num_frames=length, distinct=apart
        )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = pl_module.step == pl_module.steps
        if trainer.is_global_zero and (last or pl_module.step % self.every == 0):
            found = self._scored(pl_module)
            self._write(pl_module.step, found)
            self.loggers.each(lambda logger: logger.log_metrics(found, step=pl_module.step))

    def _scored(self, module: TrainModule) -> dict[str, float]:
        with evaluating(module.backbone), module.averaged():
            seen = embedded(module.backbone, self.items)  # type: ignore[arg-type]
            return means([metric(seen) for metric in self.metrics])

    def _write(self, step: int, found: dict[str, float]) -> None:
        """The table; steps that a resumed run does again are replaced."""
        assert self.file is not None, "the run has started"
        rows = list(csv.reader(self.file.open(newline=""))) if self.file.exists() else [["step", *found]]
        kept = [row for row in rows[1:] if int(row[0]) < step]
        with self.file.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([rows[0], *kept, [step, *(repr(value) for value in found.values())]])
