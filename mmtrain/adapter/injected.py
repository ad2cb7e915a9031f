"""What every adapter that peft injects has in common: layers chosen by patterns or by a preset of the family, several
adapters at once on one network, weights in and out, and folding into the base.

Which layers a preset names is the backbone's knowledge (``presets``); what the layers compute is peft's.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Self

from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mmtrain.adapter.bottleneck import bound
from mmtrain.adapter.full import load_weights
from mmtrain.adapter.words import Learned
from mmtrain.errors import UserError


class Injected(nn.Module, ABC):
    """An adapter that peft puts around layers of the backbone's network.

    Args:
        targets: shell patterns over module names of the network, or the name of one of the backbone's presets.

    Attributes:
        name: of the adapter, for errors.
        kinds: of layers that it can go around.
    """

    name: str
    kinds: tuple[type[nn.Module], ...]

    def __init__(self, *, targets: Sequence[str] | str) -> None:
        super().__init__()
        self.targets = targets
        self.slot = ""  # peft's name of this adapter, chosen when it is attached
        self._network: nn.Module | None = None

    @abstractmethod
    def config(self, layers: list[str]) -> Any:
        """peft's config for the layers of these names."""

    def attach(self, backbone: Any) -> None:
        """Put the layers in place; the network's output is unchanged, bit for bit.

        Raises:
            UserError: a pattern names no layer that this can go around, no such preset, or a layer is taken.
        """
        network = backbone.network
        chosen = self._chosen(network, patterns(self.targets, backbone, self.name))
        before = len(getattr(network, "peft_config", {}))
        self.slot = f"slot{before}" if before else "default"
        self.built = self.config(chosen)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
            inject_adapter_in_model(self.built, network, adapter_name=self.slot)
        self._network = network
        for layer in network.modules():
            if isinstance(layer, BaseTunerLayer):
                own = [slot for slot in network.peft_config if slot in _slots(layer)]
                layer.set_adapter(own)  # peft leaves only the first of several switched on
                if isinstance(layer, LoraLayer):
                    # In mixed precision peft would widen the input for each adapter, and autocast narrow it again: the
                    # same numbers (save for DoRA), but a copy for the backward pass where layers could share one.
                    layer.cast_input_dtype_enabled = any(layer.use_dora.values())
        for weight in self.named_weights().values():
            weight.requires_grad_(True)

    def _chosen(self, network: nn.Module, wanted: Sequence[str]) -> list[str]:
        wrapped = {n: m for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)}
        inside = tuple(f"{name}." for name in wrapped)
        plain = {n for n, m in network.named_modules() if isinstance(m, self.kinds) and not n.startswith(inside)}
        layers = plain | {n for n, m in wrapped.items() if isinstance(m.get_base_layer(), self.kinds)}
        where = f"adapter {self.name}"
        for pattern in wanted:
            if not any(fnmatchcase(name, pattern) for name in layers):
                some = ", ".join(sorted(layers)[:3])
                raise UserError(where, f"the pattern {pattern!r} matches no layer", f"names like {some}", "correct it")
        chosen = sorted(n for n in layers if any(fnmatchcase(n, p) for p in wanted))
        if any(bound(network.get_submodule(name)) for name in chosen):
            fix = f"name it after the {self.name} in adapters"
            raise UserError(where, "a bottleneck behind the same layer already", f"the {self.name} first", fix)
        other = [name for name in chosen if name in wrapped and not self._alike(wrapped[name])]
        if other:
            came = f"{other[0]} has a {type(wrapped[other[0]]).__module__.split('.')[-2]} around it"
            raise UserError(where, came, "layers without, or with another of its kind", "choose other targets")
        return chosen

    def _alike(self, layer: BaseTunerLayer) -> bool:
        """Whether a wrapped layer holds adapters of this kind."""
        return type(layer).__module__.split(".")[-2] == self.name

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by the network's own names."""
        assert self._network is not None, "attach first"
        own = f".{self.slot}"
        named = self._network.named_parameters()
        return {n.replace(own, ""): w for n, w in named if own in f"{n}." and ".base_layer." not in n}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, f"adapter {self.name}")

    def train(self, mode: bool = True) -> Self:
        """Training mode for its own layers, with their dropout; never for the frozen layers that they stand around."""
        assert self._network is not None, "attach first"
        self.training = mode
        for layer in self._network.modules():
            if isinstance(layer, BaseTunerLayer) and self.slot in _slots(layer):
                layer.training = mode  # peft asks it, besides the dropout itself
                for held in layer.children():
                    if isinstance(held, nn.ModuleDict) and self.slot in held:
                        held[self.slot].train(mode)
        return self


def patterns(targets: Sequence[str] | str, backbone: Any, name: str) -> list[str]:
    """The patterns that targets are, or that a preset's name stands for.

    Raises:
        UserError: the backbone has no preset of that name, or there are no patterns.
    """
    if not isinstance(targets, str):
        if not targets:
            raise UserError(f"adapter {name}", "no targets", "a preset or patterns", "name some")
        return list(targets)
    known: dict[str, list[str]] = getattr(backbone, "presets", {})
    if targets not in known:
        wanted = f"one of {', '.join(known) or 'none here'}, or a list of patterns"
        raise UserError(f"adapter {name}", f"targets {targets}", wanted, "correct it")
    return known[targets]


def _slots(layer: BaseTunerLayer) -> set[str]:
    return {slot for part in layer.adapter_layer_names for slot in getattr(layer, part)}


def merged(network: nn.Module) -> Any:
    """A copy of a network with its injected layers folded into the weights they stand on; nothing of peft is left, and
    learned words are rows of a plain table. It is in 32 bits, however the network is held."""
    plain: Any = copy.deepcopy(network)
    for weight in plain.parameters():
        weight.data = weight.data.float()
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, Learned):
            table = layer.plain()
            plain.set_submodule(name, table)
            plain.config.vocab_size = len(table.weight)
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            base = layer.get_base_layer()
            base._forward_hooks.update(layer._forward_hooks)  # a bottleneck stands behind the sum
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, base)
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain


@contextmanager
def without(network: nn.Module) -> Iterator[None]:
    """Inside, a network is what it was before anything was injected.

    Raises:
        UserError: it has layers that cannot be switched off.
    """
    if bound(network):
        came = "a bottleneck or gated attention, which stays in the network"
        raise UserError("adapters", came, "adapters that can be switched off, as LoRA can", "leave it out")
    layers = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
