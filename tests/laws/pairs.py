"""A tiny CLIP in float64 with dropout at work, a batch of pairs for it, and what a step gives: for the laws of losses
over whole batches, in one process (test_contrastive.py) and in several (ranks.py)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.adapter.full import Full
from mmtrain.adapter.temperature import Temperature
from mmtrain.backbone.clip import CLIP
from mmtrain.batch import Batch
from mmtrain.objective.contrastive import Contrastive
from mmtrain.objective.siglip import SigLIP
from mmtrain.objective.whole import WholeBatch

CAPTIONS = [
    "a red circle",
    "a blue square",
    "a red square",
    "a blue circle",
    "a red circle",
    "a red circle moving left",
]
CAPTIONS += ["a blue circle moving right", "a black square"]
KEYS = ["a", "b", "c", "d", "e", "f", "b", "h"]  # the fifth caption comes twice, so does the second picture


def objective(name: str, tile: int = 512) -> WholeBatch:
    return {"contrastive": Contrastive, "siglip": SigLIP}[name](tile=tile)


def pairs() -> Batch:
    frames = torch.rand(8, 1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames[6] = frames[1]
    return Batch(KEYS, list(range(40, 48)), CAPTIONS, frames)


def towers(path: Path | str, name: str, dropout: float = 0.3) -> tuple[CLIP, dict[str, Any]]:
    """Everything trains that an objective uses, with dropout in every attention and before both projections."""
    model = CLIP(path=str(path)).double()
    adapters: dict[str, Any] = {"full": Full(train=["*"], freeze=["logit_scale"])}
    if name != "apart":
        adapters["temperature"] = Temperature(scale=8.0, bias=-3.0 if name == "siglip" else None)
    for adapter in adapters.values():
        adapter.attach(model)
    model.train()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = dropout
    for name in ("text_projection", "visual_projection"):
        plain = getattr(model.model, name)
        setattr(model.model, name, torch.nn.Sequential(torch.nn.Dropout(dropout), plain))
    return model, adapters


def weights(adapters: dict[str, Any]) -> dict[str, torch.nn.Parameter]:
    return {f"{a}/{n}": w for a, adapter in adapters.items() for n, w in adapter.named_weights().items()}


def taken(adapters: dict[str, Any]) -> dict[str, Tensor]:
    """The gradients, by name; zeros where nothing arrived."""
    found = {n: torch.zeros_like(w) if w.grad is None else w.grad.clone() for n, w in weights(adapters).items()}
    for weight in weights(adapters).values():
        weight.grad = None
    return found
