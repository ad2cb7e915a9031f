"""What each thing that `train/lighten.py` does to a network gives in time, beside the stock network, in one process.

Called by `make bench-step`. What it gives in memory is `make bench-scale`'s. Processor time; a step is a forward and a
backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.report import Report
from benchmarks.rounds import in_turn, rounds_asked
from benchmarks.scale import work
from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.backbone.flat_convolution import flatten
from mmtrain.backbone.frozen import spare
from mmtrain.backbone.one_token import shorten
from mmtrain.backbone.plain_attention import write_out
from mmtrain.backbone.recompute import recompute

ROUNDS = rounds_asked(10)
TEMPORAL = ["backbone=svd", "adapters.style.targets=temporal"]
CONVOLVED = ["backbone=svd", "adapters.style.targets=['*.temporal_res_block.conv*']"]
Change = Callable[[Any], Any]

SD: dict[str, list[Change]] = {"stock": [], "frozen convolutions": [spare], "and recomputed": [spare, recompute]}
SVD: dict[str, list[Change]] = {
    "stock": [],
    "frozen convolutions": [spare],
    "and one token": [spare, shorten],
    "one token alone": [shorten],
    "all, recomputed": [spare, shorten, recompute],
}

CLIPS: dict[str, list[Change]] = {"stock": [], "flat convolutions": [flatten]}
SIXTEEN: dict[str, list[Change]] = {"stock": [], "attention written out": [write_out]}


def knobs(report: Report) -> None:
    """A table for each family, and of clips for training's two precisions on a CPU."""
    for title, words, point, ways in (
        ("Stable Diffusion (tiny), batch 4, 64 px", list[str](), (4, 1, 64), SD),
        ("Stable Video Diffusion (tiny), 4 frames of 64 px", TEMPORAL, (1, 4, 64), SVD),
        ("Stable Video Diffusion (tiny), 8 clips of 8 frames", CONVOLVED, (8, 8, 64), CLIPS),
        ("Stable Video Diffusion (tiny), 8 clips of 8 frames, bf16", TEMPORAL, (8, 8, 64), SIXTEEN),
    ):
        made: dict[str, Callable[[], float]] = {}
        for name, changes in ways.items():
            cfg = config.compose("sd_lora", ["dataset.shards=nowhere", *words])
            model = config.build(cfg.backbone)
            attached(model, cfg.adapters)
            for change in changes:
                change(model.network)
            once, sixteen = work(model, *point), ways is SIXTEEN
            made[name] = lambda once=once, sixteen=sixteen: _done(once, sixteen)
        report.arms(title, in_turn(made, count=ROUNDS), unit="step")


def _done(once: Callable[[], Any], sixteen: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=sixteen):
        once()
    return 1
