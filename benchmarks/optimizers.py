"""An optimizer's step alone, on the weights of LoRA on the tiny Stable Diffusion: AdamW, torch's own Muon where it
takes them (matrices, and those in 16 bits), and ours.

Called by `make bench-step`. Processor time of a step on given gradients.
"""

from collections.abc import Callable

import torch

from benchmarks.report import Report
from benchmarks.rounds import in_turn, rounds_asked
from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.train.muon import Muon
from mmtrain.train.optim import AdamW

ROUNDS = rounds_asked(10)


def optimizers(report: Report) -> None:
    """A table for LoRA on linear layers and one for LoRA on convolutions, too."""
    for title, preset in (("attention", "attention"), ("every layer", "whole")):
        weights = _weights(preset)
        ways: dict[str, torch.optim.Optimizer] = {"AdamW": AdamW(lr=1e-4).optimizer(weights)}
        if all(weight.ndim == 2 for weight in weights.values()):
            ways["torch's Muon"] = torch.optim.Muon(list(weights.values()), lr=1e-4, adjust_lr_fn="match_rms_adamw")
        ways["Muon"] = Muon(lr=1e-4).optimizer(weights)
        made: dict[str, Callable[[], float]] = {name: lambda way=way: _done(way) for name, way in ways.items()}
        title = f"Optimizer alone, LoRA of rank 16 on {title}: {len(weights)} matrices"
        report.arms(title, in_turn(made, count=ROUNDS), unit="step")


def _weights(preset: str) -> dict[str, torch.nn.Parameter]:
    cfg = config.compose("brand_style", ["dataset.folder=nowhere", f"adapters.style.targets={preset}"])
    model = config.build(cfg.backbone)
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, adapter in attached(model, cfg.adapters).items():
        for key, weight in adapter.named_weights().items():
            weight.grad = torch.randn(weight.shape, generator=draw)
            found[f"{name}/{key}"] = weight
    return found


def _done(optimizer: torch.optim.Optimizer) -> float:
    optimizer.step()
    return 1
