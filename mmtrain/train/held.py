"""How frozen weights are held while a run trains: in how many bits, as `trainer.frozen_bits` says, and which not on the
device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mmtrain import config
from mmtrain.errors import UserError
from mmtrain.train.schedule import Fit

KINDS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MULTIPLYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def hold(backbone: Any, schedule: Fit) -> None:
    """Hold frozen matrices and kernels in the type in which mixed precision multiplies them.

    It would make such a copy of each at every use, so a step's numbers stay the same, bit for bit; vectors (norms,
    biases) and what trains stay in 32 bits. DoRA alone also measures the matrices that it stands on, which are rounded
    then. Encoders are left as they are: what they say is the same for whoever asks.

    Raises:
        UserError: a backbone that is no denoiser; its towers are asked for more than a step's products.
    """
    if schedule.frozen_bits == 32:
        return
    if not hasattr(backbone, "predict"):
        fix = "set it so; a cache of what its frozen towers say saves more"
        raise UserError("trainer.frozen_bits", f"16 for a {type(backbone).__name__}", "32", fix)
    for layer in backbone.network.modules():
        if isinstance(layer, MULTIPLYING) and not layer.weight.requires_grad:
            layer.weight.data = layer.weight.data.to(KINDS[schedule.precision])


def idle(cfg: DictConfig, backbone: Any) -> list[str]:
    """Parts of a backbone that no step asks, since the cache has what they say and nothing is sampled or held out: on
    an accelerator they are left in the machine's own memory."""
    objective = config.locate(cfg.objective["_target_"])
    asked = cfg.get("preview") is not None or cfg.get("heldout") is not None or getattr(objective, "decodes", False)
    if cfg.get("cache") is None or asked or cfg.trainer.accelerator == "cpu":
        return []
    return list(getattr(backbone, "only_encode", ()))


def set_aside(backbone: nn.Module, names: list[str]) -> None:
    """Parts are no longer moved with a backbone; they can be asked as before."""
    for name in names:
        backbone.__dict__[name] = backbone._modules.pop(name)


def computing(backbone: Any) -> AbstractContextManager[Any]:
    """What a network is asked in outside a step: mixed precision where it is held in 16 bits, else nothing."""
    kinds = {weight.dtype: weight.device.type for weight in backbone.network.parameters()}
    for kind in KINDS.values():
        if kind in kinds:
            return torch.autocast(kinds[kind], kind)
    return nullcontext()


@contextmanager
def in_32_bits(network: nn.Module) -> Iterator[None]:
    """Inside, all weights of a network are in 32 bits, as in the copy that samples."""
    kinds = {weight: weight.dtype for weight in network.parameters()}
    for weight in kinds:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight, kind in kinds.items():
            weight.data = weight.data.to(kind)
