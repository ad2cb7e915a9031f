"""Gated cross-attention (Alayrac et al. 2022): beside a frozen cross-attention a new one that reads the same tokens,
through a gate that starts shut: y + tanh(g)·A(y, tokens), g = 0.

Unlike LoRA it is not linear in the frozen weights, so it cannot be folded into them.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class Gated(nn.Module):
    """A gated cross-attention behind each frozen one that patterns name.

    Args:
        width: of the new attention's inner layers.
        heads: divides ``width``.
        targets: shell patterns over names of cross-attention modules, such as ``*.attn2``.
    """

    def __init__(self, *, width: int, heads: int, targets: list[str]) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise UserError("adapter gated", f"width {width}, heads {heads}", "heads that divide width", "correct it")
        self.width, self.heads, self.targets = width, heads, targets
        self.layers = nn.ModuleDict()

    def attach(self, backbone: Any) -> None:
        """Put the layers in place; the network's output is unchanged, bit for bit.

        Raises:
            UserError: a pattern names no attention.
        """
        found = {n: m for n, m in backbone.network.named_modules() if hasattr(m, "to_out") and hasattr(m, "to_k")}
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in found):
                some = ", ".join(sorted(found)[:3])
                came = f"the pattern {pattern!r} matches no attention"
                raise UserError("adapter gated", came, f"names like {some}", "correct it")
        for name, module in found.items():
            if any(fnmatchcase(name, pattern) for pattern in self.targets):
                features, tokens = _weight(module.to_out[0]).shape[0], _weight(module.to_k).shape[1]
                layer = Layer(features, tokens, self.width, self.heads)
                self.layers[name.replace(".", "/")] = layer  # a ModuleDict's names have no dots
                module.register_forward_hook(layer.behind, with_kwargs=True)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by the names of the attentions it stands beside."""
        return {name.replace("/", "."): weight for name, weight in self.layers.named_parameters()}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter gated")


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight


class Layer(nn.Module):
    """y + tanh(g)·A(y, tokens) for y ``[b q d]`` and tokens ``[b l d']``."""

    stays_behind = True  # it cannot be folded into the layer that it stands behind

    def __init__(self, features: int, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(features)
        self.query, self.value = nn.Linear(features, width, bias=False), nn.Linear(tokens, width, bias=False)
        self.key = nn.Linear(tokens, width, bias=False)
        self.out = nn.Linear(width, features, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, y: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = self.query(self.norm(y)), self.key(tokens), self.value(tokens)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        read = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return y + self.gate.tanh() * self.out(read)

    def behind(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        """The hook: an attention's output, with what the new one reads from the same tokens."""
        tokens = named.get("encoder_hidden_states")
        if tokens is None:
            tokens = given[1]
        return torch.as_tensor(self(output, tokens))
