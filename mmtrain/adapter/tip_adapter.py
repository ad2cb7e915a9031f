"""Tip-Adapter (Zhang et al. 2022): the few examples themselves are a memory on top of a frozen image tower.

The paper adds α·exp(−β(1 − f·Kᵀ))·V to the logits 100·f·Wᵀ, K the examples' embeddings and V their classes, one-hot.
Here examples have captions, not classes: V holds their captions' embeddings, and the sum is added to f itself, so that
a caption near an example's is drawn as much as f is near that example. Trained, it is Tip-Adapter-F.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class TipAdapter(nn.Module):
    """f ← f + |f|·α·Σ exp(−β(1 − f̂·k))·v over the examples; nothing before `remember` is called, when v = 0.

    Args:
        shots: examples that it holds.
        alpha: α, how much they weigh.
        beta: β, how near is near; the paper takes 5.5.
    """

    def __init__(self, *, shots: int, alpha: float, beta: float) -> None:
        super().__init__()
        if shots < 1 or alpha <= 0 or beta <= 0:
            came = f"shots {shots}, alpha {alpha}, beta {beta}"
            raise UserError("adapter tip_adapter", came, "numbers above 0", "correct them")
        self.shots, self.alpha, self.beta = shots, alpha, beta

    def attach(self, backbone: Any) -> None:
        """Stand on top of the visual tower.

        Raises:
            UserError: the towers' widths differ here.
        """
        text, visual = backbone.joined_widths
        if text != visual:
            fix = "name it after a projection in adapters"
            raise UserError("adapter tip_adapter", f"widths {text} and {visual}", "one shared space", fix)
        self.keys = nn.Parameter(F.normalize(torch.randn(self.shots, visual), dim=-1))
        self.values = nn.Parameter(torch.zeros(self.shots, text))
        backbone.visual_top.append(self)

    @torch.no_grad()
    def remember(self, seen: Tensor, said: Tensor) -> None:
        """Hold examples: embeddings ``[shots d]`` of what was seen, as they come here, and of its captions."""
        self.keys.copy_(F.normalize(seen, dim=-1))
        self.values.copy_(F.normalize(said, dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings ``[b d]`` → the same, drawn to the captions of the examples that they are near."""
        near = torch.exp(-self.beta * (1 - F.normalize(features, dim=-1) @ F.normalize(self.keys, dim=-1).T))
        return features + features.norm(dim=-1, keepdim=True) * self.alpha * (near @ self.values)

    def named_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter tip_adapter")
