"""Where and in how many bits a network samples: on the graphics card where there is one, in 32, 16 or 8 bits.

Adapters are folded in first; vectors (norms, biases), encoders and codec stay in 32 bits, and so do noise, latents and
the solver's steps: a seed means the same clip, but for what the network rounds.
"""

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmtrain.sample.generate import HELD, folded
from mmtrain.sample.strength import replace
from mmtrain.threads import multiplies_bf16

Bits = Literal[32, 16, 8]
_LEVELS = 127  # on each side of zero
_MULTIPLYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def bits_that_pay() -> Bits:
    """16 where this machine's products of 16 bits are the faster ones, else 32."""
    return 16 if multiplies_bf16("gpu" if torch.cuda.is_available() else "cpu") else 32


def placed(model: Any) -> Any:
    """A model on the graphics card, where there is one."""
    return model.to("cuda") if torch.cuda.is_available() else model


def hold(backbone: Any, bits: Bits) -> tuple[int, int]:
    """Hold the network that adapters are attached to in fewer bits.

    16: matrices and kernels in bfloat16, and products made in it: half the memory of 32 bits, and faster where a
    machine has units for it. 8: as int8 with one scale for each output channel, turned back where they are used, so
    that products are made in 32 bits: a quarter of the memory, and no less time.

    Returns:
        Bytes of the network's weights before and after.
    """
    network = folded(backbone.network)
    before = _bytes(network)
    for layer in [each for each in network.modules() if isinstance(each, _MULTIPLYING) and bits < 32]:
        layer.requires_grad_(False)
        if bits == 8:
            parametrize.register_parametrization(layer, "weight", _Eight())
        else:
            layer.weight.data = layer.weight.data.bfloat16()
    if bits == 16:
        network.forward = _mixed(network)
    setattr(network, HELD, bits < 32)
    replace(backbone, network)
    return before, _bytes(network)


class _Eight(nn.Module):
    """Weights from int8 ``[o …]`` and scales ``[o 1 …]``, and back: the nearest of 255 even levels of each channel."""

    def forward(self, kept: Tensor, scale: Tensor) -> Tensor:
        return kept.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        most = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        scale = torch.where(most > 0, most / _LEVELS, torch.ones_like(most))
        return (weight / scale).round().to(torch.int8), scale


def _mixed(network: nn.Module) -> Any:
    """A network's forward in mixed precision; what it answers is in 32 bits again."""
    forward = network.forward

    @functools.wraps(forward)
    def mixed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(network.parameters()).device.type, torch.bfloat16):
            answer = forward(*args, **kwargs)
        if isinstance(answer, tuple):
            return tuple(part.float() for part in answer)
        return type(answer)(**{name: part.float() for name, part in answer.items()})

    return mixed


def _bytes(network: nn.Module) -> int:
    return sum(w.numel() * w.element_size() for w in [*network.parameters(), *network.buffers()])
