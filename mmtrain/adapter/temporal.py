"""A temporal transformer over the features of a clip's frames, before they are averaged (CLIP4Clip's sequential
similarity, Luo et al. 2021): a tower of single frames sees their order."""

from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class Temporal(nn.Module):
    """F + W_out·Transformer(norm(F) + places) over a clip's frames, with W_out = 0 at the start: then it is the mean.

    Args:
        layers: of the transformer.
        heads: attention heads; divides ``width``.
        width: of its inner layers.
        num_frames: the longest clip, in frames.
    """

    def __init__(self, *, layers: int, heads: int, width: int, num_frames: int) -> None:
        super().__init__()
        if min(layers, heads, num_frames) < 1 or width % heads:
            came = f"layers {layers}, heads {heads}, width {width}, num_frames {num_frames}"
            raise UserError("adapter temporal", came, "at least one each, and heads that divide width", "correct them")
        self.layers, self.heads, self.width, self.num_frames = layers, heads, width, num_frames

    def attach(self, backbone: Any) -> None:
        """Stand between a tower's features and their mean."""
        into = backbone.widths[1]
        self.norm, self.inward = nn.LayerNorm(into), nn.Linear(into, self.width)
        self.places = nn.Parameter(torch.randn(self.num_frames, self.width) * 0.5)
        layer = nn.TransformerEncoderLayer(
            self.width, self.heads, 4 * self.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, self.layers, enable_nested_tensor=False)
        self.out = nn.Linear(self.width, into)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        backbone.over_time.append(self)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[b n d]`` of frames → the same, each knowing the others and its place.

        Raises:
            UserError: more frames than it has places for.
        """
        n = features.shape[1]
        if n > self.num_frames:
            came, fix = f"clips of {n} frames", f"set adapters.<name>.num_frames={n}"
            raise UserError("adapter temporal", came, f"at most {self.num_frames}", fix)
        seen = self.encoder(self.inward(self.norm(features)) + self.places[:n])
        return features + self.out(seen)

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter temporal")
