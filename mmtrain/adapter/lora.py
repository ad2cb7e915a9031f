"""Low-rank adapters on any network (Hu et al. 2021), through peft: W + (α / r)·B·A with B = 0 at the start.

DoRA (Liu et al. 2024) trains the length of each of W's rows beside it: m·(W + (α / r)·B·A) / |W + (α / r)·B·A|.
"""

import copy
from fnmatch import fnmatchcase
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mmtrain.adapter.bottleneck import bound
from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class LoRA(nn.Module):
    """LoRA on the linear layers and convolutions that patterns name.

    Args:
        rank: r.
        alpha: α; the update is scaled by α / r.
        targets: shell patterns over module names of the backbone's network.
        dropout: on the input of the update.
        dora: train the rows' lengths too.
    """

    def __init__(
        self, *, rank: int, alpha: float, targets: list[str], dropout: float = 0.0, dora: bool = False
    ) -> None:
        super().__init__()
        if rank < 1 or alpha <= 0:
            raise UserError("adapter lora", f"rank {rank}, alpha {alpha}", "rank ≥ 1 and alpha > 0", "correct them")
        self.rank, self.alpha, self.targets, self.dropout, self.dora = rank, alpha, targets, dropout, dora
        self._network: nn.Module | None = None

    def attach(self, backbone: Any) -> None:
        """Put the layers in place; the network's output is unchanged, bit for bit.

        Raises:
            UserError: a pattern names no layer that LoRA can go on.
        """
        network = backbone.network
        layers = {n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in layers):
                some = ", ".join(sorted(layers)[:3])
                raise UserError(
                    "adapter lora", f"the pattern {pattern!r} matches no layer", f"names like {some}", "correct it"
                )
        chosen = sorted(n for n in layers if any(fnmatchcase(n, p) for p in self.targets))
        if any(bound(network.get_submodule(name)) for name in chosen):
            fix = "name it after the LoRA in adapters"
            raise UserError("adapter lora", "a bottleneck behind the same layer already", "the LoRA first", fix)
        self.config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=chosen,
            init_lora_weights=True,
            use_dora=self.dora,
        )
        inject_adapter_in_model(self.config, network)
        self._network = network
        for name, weight in network.named_parameters():
            weight.requires_grad_("lora_" in name)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by the network's own names."""
        assert self._network is not None, "attach first"
        return {n.replace(".default", ""): w for n, w in self._network.named_parameters() if "lora_" in n}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter lora")


def merged(network: nn.Module) -> Any:
    """A copy of a network with its LoRA layers folded into the weights they stand on; nothing of peft is left."""
    plain = copy.deepcopy(network)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            base = layer.get_base_layer()
            base._forward_hooks.update(layer._forward_hooks)  # a bottleneck stands behind the sum
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, base)
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain
