"""An optimizer's step alone, on the weights of LoRA on the tiny Stable Diffusion: AdamW, torch's own Muon where it
takes them (matrices, and those in 16 bits), and ours.

What makes ours fast is held beside the iteration as it was published, one matrix after the other.

Called by `make bench-step`. Processor time of a step on given gradients.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from benchmarks.report import Report
from benchmarks.rounds import in_turn, rounds_asked
from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.train.muon import Muon, orthogonal
from mmtrain.train.optim import AdamW

ROUNDS = rounds_asked(10)


def optimizers(report: Report) -> None:
    """A table for LoRA on attention, one for LoRA on every layer, and one for the iteration by itself."""
    for where, preset in (("attention", "attention"), ("every layer", "whole")):
        weights = _weights(preset)
        ways: dict[str, torch.optim.Optimizer] = {"AdamW": AdamW(lr=1e-4).optimizer(weights)}
        if all(weight.ndim == 2 for weight in weights.values()):
            ways["torch's Muon"] = torch.optim.Muon(list(weights.values()), lr=1e-4, adjust_lr_fn="match_rms_adamw")
        ways["Muon"] = Muon(lr=1e-4).optimizer(weights)
        made: dict[str, Callable[[], float]] = {name: lambda way=way: _done(way) for name, way in ways.items()}
        title = f"Optimizer alone, LoRA of rank 16 on {where}: {len(weights)} matrices"
        report.arms(title, in_turn(made, count=ROUNDS), unit="step")
    _iterations(report, [weight.detach().flatten(1) for weight in _weights("whole").values()])


def _iterations(report: Report, matrices: list[Tensor]) -> None:
    of_rank = [torch.randn_like(matrix) for matrix in matrices if min(matrix.shape) == 16]
    ways: dict[str, Callable[[], float]] = {
        "one after the other": lambda: _all(_published(matrix) for matrix in of_rank),
        "stacked": lambda: _all(orthogonal(of_rank)),
    }
    title = f"Newton-Schulz alone, {len(of_rank)} matrices of rank 16"
    report.arms(title, in_turn(ways, count=ROUNDS), unit="all")


def _published(matrix: Tensor) -> Tensor:
    """Jordan's iteration, as it was published; in 32 bits."""
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.mT if tall else matrix
    found = found / found.norm().clamp_min(1e-7)
    for _ in range(5):
        square = found @ found.mT
        found = 3.4445 * found + (-4.775 * square + 2.0315 * square @ square) @ found
    return found.mT if tall else found


def _all(found: Iterable[Tensor]) -> float:
    for _ in found:
        pass
    return 1


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
