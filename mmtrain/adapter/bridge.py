"""The bridge: text features to the conditioning tokens of an image-to-video model.

tokens = base + W_out·MLP(n · attention of learned queries over the text's n tokens). The base is the text tower's own
embedding, which shares the image's space: the untrained baseline that a bridge must beat. Times n, because a mean over
a caption hides the one word that tells the motion; attention starts as that mean. Beside the tokens it writes a shift
of the embedding by which frame rate and motion bucket enter.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError

FEATURES = 1024  # random directions, which need not be saved: they are the same in every process
THRESHOLD = 1.5  # standard deviations: one feature in fifteen is above


class Bridge(nn.Module):
    """Learned queries read a text and write conditioning tokens.

    Args:
        tokens: conditioning tokens it emits. With one, a cross-attention's q and k have no effect (softmax over one).
        width: of the bridge's inner layers.
        heads: attention heads; divides ``width``.
        spread: of a fresh W_out, over torch's own initialisation. At 0 a fresh bridge is the untrained baseline, bit
            for bit, but gives the network no word to tell from another; at 1 captions differ from the first step on.
    """

    def __init__(self, *, tokens: int, width: int, heads: int, spread: float = 0.0) -> None:
        super().__init__()
        if tokens < 1 or width % heads:
            raise UserError(
                "adapter bridge",
                f"tokens {tokens}, width {width}, heads {heads}",
                "heads that divide width",
                "correct it",
            )
        self.tokens, self.width, self.heads, self.spread = tokens, width, heads, spread

    def attach(self, backbone: Any) -> None:
        """Read the widths from the models and become the backbone's way from text to conditioning."""
        if backbone.text is None:
            raise UserError("adapter bridge", "a backbone without a text tower", "backbone.text_path", "give its path")
        into, out = backbone.text.width, backbone.conditioning_width
        self.shared = backbone.text.shared_width == out
        self.queries = nn.Parameter(torch.randn(self.tokens, self.width) * 0.5)
        self.norm = nn.LayerNorm(into, elementwise_affine=False)
        self.keys = nn.Linear(into, self.width, bias=False)  # a softmax does not see a bias of its keys
        self.values = nn.Linear(into, self.width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(self.width),
            nn.Linear(self.width, 4 * self.width),
            nn.GELU(),
            nn.Linear(4 * self.width, self.width),
        )
        self.out = nn.Linear(self.width, out)
        self.out.weight.data *= self.spread
        nn.init.zeros_(self.out.bias)
        directions = torch.randn(FEATURES, into, generator=torch.Generator().manual_seed(0)) / into**0.5
        self.register_buffer("directions", directions, persistent=False)
        self.steering = nn.Linear(FEATURES, backbone.micro_width, bias=False)
        nn.init.zeros_(self.steering.weight)
        self.conditioning_width = out
        backbone.bridge = self

    def forward(self, text: Any) -> Tensor:
        """Text features (tokens ``[b l d]``, mask ``[b l]``, embeds ``[b d']``) → conditioning tokens ``[b n d'']``.

        Where the text tower's shared space has another width than the conditioning, the base is zeros.
        """
        b = len(text.tokens)
        q = self.queries.expand(b, -1, -1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        tokens = self.norm(text.tokens)
        k, v = (f(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.keys, self.values))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=text.mask[:, None, None, :])
        mixed = mixed.transpose(1, 2).flatten(2) * text.mask.sum(1)[:, None, None]
        delta = self.out(mixed + self.mlp(mixed))
        if not self.shared:
            return delta
        return text.embeds[:, None] + delta

    def steer(self, text: Any) -> Tensor:
        """Text features → what is added to the embedding of the micro-conditioning, ``[b d]``; zeros at the start.

        A sum over words: fps, motion bucket and noise enter a network at every level by this embedding, and so may the
        words that tell a motion. Each word lights one in fifteen of many random features, so that words far apart in
        the tower have weights nearly their own; words close together share most of theirs.
        """
        lit = torch.relu(self.norm(text.tokens) @ self.directions.T - THRESHOLD) * text.mask[..., None]
        return self.steering(lit.sum(1))

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter bridge")
