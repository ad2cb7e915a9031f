"""How strong an adapter is, and several of them at once: what each adds to the base's weights, times its strength.

LoRA is linear in its update, so the sum is what an adapter scale gives; at strength 0 the base's own weights remain,
bit for bit. Bottlenecks are not linear and are refused. A bridge brings text whatever the strength: it is the first
artifact's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmtrain import artifact
from mmtrain.adapter.bottleneck import bound
from mmtrain.adapter.injected import merged
from mmtrain.errors import UserError
from mmtrain.sample.generate import folded


def opened(
    where: str, *, text: str | None = None, strength: float = 1.0, mix: Mapping[str, float] | None = None
) -> tuple[Any, dict[str, Any]]:
    """A backbone to sample from, and its facts, as `artifact.opened` gives them; what can be folded, is.

    Args:
        where: an artifact, or a pipeline's folder or hub id.
        text: CLIP for a plain Stable Video Diffusion.
        strength: of the artifact's adapters on the network; 1 is as trained, 0 is the base.
        mix: further artifacts on the same base, each with its strength.

    Raises:
        UserError: no artifact, adapters of two bases, or adapters that have no strength.
    """
    backbone, facts = artifact.opened(where, text_path=text)
    if strength == 1 and not mix:
        fold(backbone)
        return backbone, facts
    if where in (mix or {}):
        raise UserError("--mix", f"{where} again", "another artifact", "say its strength with --strength")
    wanted = {where: strength, **(mix or {})}
    for folder in wanted:
        if not (Path(folder) / artifact.FACTS).is_file():
            raise UserError(folder, "no artifact, so no strength", "a folder that `mmtrain export` wrote", "correct it")
    plain = _weights(artifact.base(where).network)
    total = {name: weight.clone() for name, weight in plain.items()}
    for folder, strong in wanted.items():
        network = _network(folder, backbone, facts) if folder != where else backbone.network
        if bound(network):
            raise UserError(folder, "bottlenecks, which have no strength", "LoRA", "leave --strength and --mix out")
        for name, weight in _weights(merged(network)).items():
            total[name] += strong * (weight - plain[name])
    network = merged(backbone.network)
    network.load_state_dict(total)
    replace(backbone, network)
    names = " + ".join(f"{strong:g} {Path(folder).name}" for folder, strong in wanted.items())
    return backbone, {**facts, "strengths": names}


def _network(folder: str, backbone: Any, facts: Mapping[str, Any]) -> nn.Module:
    other = artifact.read(Path(folder))
    if other["base"]["digest"] != facts["base"]["digest"]:
        came = f"its base is {other['base']['path']} ({other['base']['digest'][:12]}…)"
        wanted = f"the base of the first, {facts['base']['path']} ({facts['base']['digest'][:12]}…)"
        raise UserError(folder, came, wanted, "mix adapters of one base")
    network: nn.Module = artifact.load(folder)[0].network
    return network


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in network.state_dict().items()}


def fold(backbone: Any) -> None:
    """Fold adapters into a backbone's network for good: once for all that is sampled, where a sampler that is handed
    adapters folds them into a copy at every call."""
    if hasattr(backbone, "makes") and hasattr(backbone.network, "peft_config"):
        replace(backbone, folded(backbone.network))


def replace(backbone: nn.Module, network: nn.Module) -> None:
    """Put a network in the place of a backbone's own."""
    old = backbone.network
    name = next(name for name, part in backbone.named_modules() if part is old)
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, network.eval())
