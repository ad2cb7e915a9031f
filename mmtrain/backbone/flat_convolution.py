"""Convolutions over frames alone, done as 2D ones over frames × places: on one CPU thread torch has no fast kernel for
3D convolutions that are 1 × 1 in a picture, and takes two to four times as long (benchmarks/RESULTS.md).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def flatten(network: nn.Module) -> int:
    """Have a network's convolutions over frames go the flat way in training, in 32 bits on a CPU; how many there are.

    Without gradients, in 16 bits and on a GPU all goes the stock way, bit for bit.
    """
    found = 0
    for module in network.modules():
        if type(module) is nn.Conv3d and _over_frames(module):
            module.__class__ = FlatConv3d
            found += 1
    return found


def _over_frames(layer: nn.Conv3d) -> bool:
    alone = layer.kernel_size[1:] == (1, 1) and layer.stride == layer.dilation == (1, 1, 1) and layer.groups == 1
    return (
        alone and layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and layer.padding[1:] == (0, 0)
    )


class FlatConv3d(nn.Conv3d):
    """A convolution over the frames of ``[b c t h w]``."""

    def forward(self, x: Tensor) -> Tensor:
        faster = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not faster or x.ndim != 5 or not torch.is_grad_enabled():
            return super().forward(x)
        flat = F.conv2d(x.flatten(3), self.weight.flatten(3), self.bias, padding=(int(self.padding[0]), 0))
        return flat.unflatten(3, x.shape[3:])
