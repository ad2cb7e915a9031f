"""The bridge: text to the conditioning of an image-to-video model, in two ways.

Tokens: base + W_out·MLP(n · attention of learned queries over the text's n tokens), in the place of the image's. The
base is the text tower's own embedding, which shares the image's space: the untrained baseline that a bridge must beat.
Times n, because a mean over a caption hides the one word that tells the motion; attention starts as that mean.

Steering: a code of the caption, through one zero-initialised linear map for each residual block, is added to what the
block reads of noise level and micro-conditioning. The code is drawn to the clips that captions describe before the
first step (`train/align.py`) and then stays: so motions are apart in it before the network has to learn what they mean.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class Bridge(nn.Module):
    """Learned queries read a text and write conditioning tokens.

    Args:
        tokens: conditioning tokens it emits. With one, a cross-attention's q and k have no effect (softmax over one).
        width: of the bridge's inner layers.
        heads: attention heads; divides ``width``.
        code: width of a caption's code.
    """

    def __init__(self, *, tokens: int, width: int, heads: int, code: int) -> None:
        super().__init__()
        if tokens < 1 or width % heads:
            raise UserError(
                "adapter bridge",
                f"tokens {tokens}, width {width}, heads {heads}",
                "heads that divide width",
                "correct it",
            )
        self.tokens, self.width, self.heads, self.code_width = tokens, width, heads, code

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
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("whitening", whitening(backbone.text.words), persistent=False)
        self.say = nn.Sequential(
            nn.Linear(into, 2 * self.width), nn.SiLU(), nn.Linear(2 * self.width, self.code_width)
        ).requires_grad_(False)
        self.usual = nn.Parameter(torch.zeros(self.code_width), requires_grad=False)
        self.news = nn.Parameter(torch.eye(self.code_width), requires_grad=False)
        self.steering = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(torch.zeros(wide, self.code_width))
                for name, wide in backbone.modulated.items()
            }
        )
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

    def direction(self, text: Any) -> Tensor:
        """Text features (words ``[b l d]``, mask ``[b l]``) → unit vectors ``[b k]``, which alignment compares.

        A sum over the words, whitened over the tower's whole vocabulary: words that a tower holds close together, as
        one that has seen single pictures holds *left* and *right*, are apart in it.
        """
        bag = (text.words @ self.whitening * text.mask[..., None]).sum(1)
        return F.normalize(self.say(bag), dim=-1)

    def code(self, text: Any) -> Tensor:
        """Text features → codes ``[b k]`` of about unit variance, without what is usual in captions and what a first
        frame shows already."""
        return (self.direction(text) - self.usual) @ self.news.T * self.code_width**0.5

    def steer(self, code: Tensor) -> dict[str, Tensor]:
        """Codes ``[b k]`` → by residual block, what is added to its time embedding, ``[b c]``; zeros at the start."""
        return {name.replace("/", "."): code @ weight.T for name, weight in self.steering.items()}

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What is kept of it; the code's own weights need no gradient."""
        return dict(self.named_parameters())

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter bridge")


def whitening(words: Tensor) -> Tensor:
    """The symmetric square root of the inverse of a vocabulary's second moments, ``[n d]`` → ``[d d]``."""
    moments = words.double().T @ words.double() / len(words)
    values, vectors = torch.linalg.eigh(moments)
    return (vectors * values.clamp(min=1e-6 * values[-1]).rsqrt() @ vectors.T).to(words)
