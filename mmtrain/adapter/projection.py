"""Projection heads on top of two towers: what brings them into one space, or turns one that they share."""

from typing import Any

from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class Projection(nn.Module):
    """A linear layer, without bias, on each tower's features (Radford et al. 2021, figure 3).

    Where a tower has that width already, its layer starts as the identity, so that a fresh one changes no bit.

    Args:
        width: of the shared space; None: the text tower's own.
    """

    def __init__(self, *, width: int | None = None) -> None:
        super().__init__()
        if width is not None and width < 1:
            raise UserError("adapter projection", f"width {width}", "at least 1", "correct it")
        self.width = width

    def attach(self, backbone: Any) -> None:
        """Stand on top of both towers."""
        text, visual = backbone.widths
        out = self.width if self.width is not None else text
        self.text, self.visual = (nn.Linear(into, out, bias=False) for into in (text, visual))
        for layer in (self.text, self.visual):
            if layer.in_features == out:
                nn.init.eye_(layer.weight)
        backbone.text_top.append(self.text)
        backbone.visual_top.append(self.visual)

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter projection")
