"""The temperature of a shared space, and SigLIP's bias, as weights that train beside adapters on frozen towers."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError

MAX_SCALE = 100.0


class Temperature(nn.Module):
    """Trains t in s = eᵗ, and b where there is one, of a backbone of two towers.

    Args:
        scale: s at the start (CLIP from scratch 1 / 0.07, SigLIP 10), or None to go on from the backbone's own.
        bias: b at the start (SigLIP from scratch −10), or None for the backbone's own, if it has one.
    """

    def __init__(self, *, scale: float | None = None, bias: float | None = None) -> None:
        super().__init__()
        if scale is not None and not 0 < scale <= MAX_SCALE:
            came = f"a scale of {scale:g}"
            raise UserError("adapter temperature", came, f"above 0, at most {MAX_SCALE:g}", "correct it")
        self.scale, self.bias = scale, bias
        self._chosen: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Any) -> None:
        """Choose the two scalars; what another adapter trains already is left to it, with the value that is given here.

        Raises:
            UserError: the backbone has no temperature.
        """
        if not isinstance(getattr(backbone, "log_scale", None), nn.Parameter):
            came = f"a {type(backbone).__name__} has no temperature"
            raise UserError("adapter temperature", came, "a backbone of two towers", "leave this adapter out")
        if self.bias is not None and backbone.bias is None:
            backbone.bias = nn.Parameter(torch.zeros_like(backbone.log_scale), requires_grad=False)
        starts = {"log_scale": None if self.scale is None else math.log(self.scale), "bias": self.bias}
        for name, start in starts.items():
            weight = getattr(backbone, name)
            if start is not None:
                weight.data.fill_(start)
            if weight is not None and not weight.requires_grad:
                self._chosen[name] = weight.requires_grad_(True)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return self._chosen

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self._chosen, weights, "adapter temperature")
