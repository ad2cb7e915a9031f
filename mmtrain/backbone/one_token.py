"""Cross-attention to a single token: the softmax is over one element, so that the output is that token's value, for
every query. Queries, keys and scores are not computed; of Stable Video Diffusion's conditioning that is every one.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def shorten(network: nn.Module) -> int:
    """Have a network's cross-attentions take the short way in training, where what they attend to is one token and
    neither queries nor keys are trained; how many there are.

    Without gradients, as in sampling, all goes the stock way: its bits are those of the vanilla pipeline.
    """
    found = 0
    for module in network.modules():
        if not isinstance(module, Attention) or not module.is_cross_attention:
            continue
        untouched = not any(w.requires_grad for w in [*module.to_q.parameters(), *module.to_k.parameters()])
        plain = module.spatial_norm is None and module.group_norm is None and not module.residual_connection
        if untouched and plain and module.norm_cross is None and module.rescale_output_factor == 1:
            module.set_processor(OneToken(module.processor))
            found += 1
    return found


class OneToken:
    """A processor of diffusers' attention in front of another, which sees what is more than one token."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        masked = bool(args) or any(value is not None for value in kwargs.values())
        one = encoder_hidden_states is not None and encoder_hidden_states.shape[1] == 1
        if not one or masked or hidden_states.ndim != 3 or not torch.is_grad_enabled():
            found: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
            return found
        value: Tensor = attn.to_out[1](attn.to_out[0](attn.to_v(encoder_hidden_states)))
        return value.expand(-1, hidden_states.shape[1], -1)
