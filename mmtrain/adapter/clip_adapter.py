"""CLIP-Adapter (Gao et al. 2021): a small residual network on top of a frozen tower, for a few examples."""

from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class ClipAdapter(nn.Module):
    """f ← f + ratio / (1 − ratio)·|f|·W2·relu(W1·f / |f|), W2 = 0 at the start.

    The paper's ratio·A(f) + (1 − ratio)·f but for its length, which no cosine sees; a fresh one changes no bit.

    Args:
        width: of the bottleneck; the paper takes a quarter of the embedding's.
        ratio: how much of the result is new; the paper takes 0.2.
        sides: which towers get one.
    """

    def __init__(self, *, width: int, ratio: float, sides: list[str]) -> None:
        super().__init__()
        if width < 1 or not 0 < ratio < 1:
            raise UserError("adapter clip_adapter", f"width {width}, ratio {ratio}", "≥ 1, and in (0, 1)", "correct it")
        if not sides or not set(sides) <= {"text", "visual"}:
            raise UserError("adapter clip_adapter", f"sides {sides}", "text, visual, or both", "correct them")
        self.width, self.ratio, self.sides = width, ratio, sides
        self.tops = nn.ModuleDict()

    def attach(self, backbone: Any) -> None:
        """Stand on top of the named towers."""
        for side, features in zip(("text", "visual"), backbone.joined_widths, strict=True):
            if side in self.sides:
                self.tops[side] = Residual(features, self.width, self.ratio / (1 - self.ratio))
                (backbone.text_top if side == "text" else backbone.visual_top).append(self.tops[side])

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.tops.named_parameters())

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter clip_adapter")


class Residual(nn.Module):
    """f + share·|f|·W2·relu(W1·f / |f|) of embeddings ``[b d]``."""

    def __init__(self, features: int, width: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.down, self.up = nn.Linear(features, width, bias=False), nn.Linear(width, features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        length = features.norm(dim=-1, keepdim=True)
        return features + self.share * length * self.up(torch.relu(self.down(features / length)))
