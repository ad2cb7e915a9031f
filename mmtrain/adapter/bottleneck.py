"""Bottleneck adapters in frozen layers (Houlsby et al. 2019): Z_out = Z_in + W2·σ(W1·Z_in + b1) + b2, with W2 = b2 = 0
at the start.

Unlike LoRA they are not linear, so they cannot be folded into the weights they stand behind.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Bottleneck(nn.Module):
    """One bottleneck behind each linear layer that patterns name: the last projection of an attention or of an MLP.

    Args:
        width: of the bottleneck.
        targets: shell patterns over module names of the backbone's network, such as ``*.attn1.to_out.0`` (after the
            attention) and ``*.ff.net.2`` (after the MLP).
        activation: σ, by name.
    """

    def __init__(self, *, width: int, targets: list[str], activation: str = "gelu") -> None:
        super().__init__()
        if width < 1:
            raise UserError("adapter bottleneck", f"width {width}", "at least 1", "correct it")
        if activation not in ACTIVATIONS:
            some = f"one of {', '.join(ACTIVATIONS)}"
            raise UserError("adapter bottleneck", f"activation {activation}", some, "choose one")
        self.width, self.targets, self.activation = width, targets, activation
        self.layers = nn.ModuleDict()

    def attach(self, backbone: Any) -> None:
        """Put the layers in place; the network's output is unchanged, bit for bit.

        Raises:
            UserError: a pattern names no linear layer.
        """
        network = backbone.network
        linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | lora.Linear)}
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in linear):
                some = ", ".join(sorted(linear)[:3])
                came = f"the pattern {pattern!r} matches no linear layer"
                raise UserError("adapter bottleneck", came, f"names like {some}", "correct it")
        for name, module in linear.items():
            if any(fnmatchcase(name, pattern) for pattern in self.targets):
                layer = Layer(module.out_features, self.width, ACTIVATIONS[self.activation]())
                self.layers[name.replace(".", "/")] = layer  # a ModuleDict's names have no dots
                module.register_forward_hook(layer.behind)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by the names of the layers it stands behind."""
        return {name.replace("/", "."): weight for name, weight in self.layers.named_parameters()}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter bottleneck")


class Layer(nn.Module):
    """Z + W2·σ(W1·Z + b1) + b2 over the last axis of ``[... d]``."""

    stays_behind = True  # it cannot be folded into the layer that it stands behind

    def __init__(self, features: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.down, self.activation, self.up = nn.Linear(features, width), activation, nn.Linear(width, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.up(self.activation(self.down(z)))

    def behind(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """The hook: a layer's output, adapted."""
        return torch.as_tensor(self(output))


def bound(network: nn.Module) -> bool:
    """Whether a network runs through layers of ours, such as bottlenecks, which no folder of plain weights can hold."""
    hooks = (hook for module in network.modules() for hook in module._forward_hooks.values())
    return any(hasattr(getattr(hook, "__self__", None), "stays_behind") for hook in hooks)
