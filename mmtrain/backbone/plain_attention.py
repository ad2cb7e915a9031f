"""Attention written out, for short sequences in 16 bits on a CPU: the backward pass of torch's fused attention takes
three to ten times as long there as two products of matrices and a softmax (benchmarks/RESULTS.md).
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

LONGEST = 256
"""Tokens: scores are kept for the backward pass, so that memory grows with the square of a sequence."""


def write_out(network: nn.Module) -> int:
    """Have a network's attentions go the plain way in training, where that is the faster one; how many there are.

    Without gradients, in 32 bits and on a GPU all goes the stock way, bit for bit.
    """
    found = 0
    for module in network.modules():
        if not isinstance(module, Attention) or type(module.processor) is not AttnProcessor2_0:
            continue
        if module.norm_q is None and module.norm_k is None:  # the plain processor does not know them
            module.set_processor(WrittenOut(module.processor))
            found += 1
    return found


class WrittenOut:
    """A processor of diffusers' attention in front of another, which sees what is long, exact or on a GPU."""

    def __init__(self, stock: Any) -> None:
        self.stock, self.plain = stock, AttnProcessor()

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        sixteen = torch.is_autocast_enabled("cpu") or hidden_states.dtype in (torch.bfloat16, torch.float16)
        short = hidden_states.ndim == 3 and hidden_states.shape[1] <= LONGEST
        faster = hidden_states.device.type == "cpu" and sixteen and short and torch.is_grad_enabled()
        way = self.plain if faster else self.stock
        found: Tensor = way(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        return found
