"""What Lightning and our module cost over a bare loop: one SVD adapter step on cached latents, in alternate rounds.

    make bench

Prints seconds per step (min – median – max over rounds) and the ratio of the medians. Both loops train the same weights
of the same shipped tiny backbone on the same batches with the same optimizer; neither decodes, logs or saves.
"""

import statistics
import time
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from mmtrain import artifact, config
from mmtrain.batch import Batch
from mmtrain.threads import keep_pages
from mmtrain.train.module import TrainModule

ROUNDS, STEPS, SIZE = 5, 6, 4


def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    encoded = {
        "latents": torch.randn(SIZE, 16, 8, 8, 8, generator=draw),
        "latents_std": torch.rand(SIZE, 16, 8, 8, 8, generator=draw) * 0.01,
        "image_latents": torch.randn(SIZE, 8, 8, 8, generator=draw),
        "image_embeds": torch.randn(SIZE, 128, generator=draw),
        "video_embeds": torch.randn(SIZE, 128, generator=draw),
    }
    keys = [str(i) for i in range(SIZE)]
    return [Batch(keys, list(range(SIZE)), ["a red circle moving left"] * SIZE, None, encoded) for _ in range(STEPS)]


def bare(module: TrainModule, data: list[Batch]) -> None:
    optimizer = module.configure_optimizers()
    for batch in data:
        module.loss(batch).per_sample.mean().backward()
        torch.nn.utils.clip_grad_norm_(list(module.weights.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def lightning(module: TrainModule, data: list[Batch]) -> None:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        max_steps=len(data), accelerator="cpu", devices=1, gradient_clip_val=1.0, enable_model_summary=False, **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))  # type: ignore[arg-type]


def main() -> None:
    keep_pages()
    torch.set_num_threads(1)
    cfg = config.compose("svd_text_bridge")
    backbone, adapters = artifact.assemble(cfg)
    objective, optim = config.build(cfg.objective), config.build(cfg.optim)
    module = TrainModule(
        backbone=backbone, adapters=adapters, objective=objective, optim=optim, seed=0, steps=ROUNDS * STEPS * 2
    )
    seconds: dict[str, list[float]] = {"bare loop": [], "mmtrain": []}
    for loop in (bare, lightning):
        loop(module, batches()[:2])  # warm
    for _ in range(ROUNDS):
        for name, loop in (("bare loop", bare), ("mmtrain", lightning)):
            data, start = batches(), time.perf_counter()
            loop(module, data)
            seconds[name].append((time.perf_counter() - start) / STEPS)
    table = Table("loop", "s/step min – median – max", "ratio", title="SVD adapter step, cached latents, batch 4")
    base = statistics.median(seconds["bare loop"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        table.add_row(name, f"{min(times):.3f} – {middle:.3f} – {max(times):.3f}", f"{middle / base:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
