"""Frozen convolutions that do not keep their input.

torch keeps a convolution's input for the gradient of its weight, even where the weight is frozen and none is due; only
the gradient of the input is, and that needs the weight alone. Outputs and gradients are torch's, bit for bit.
"""

from typing import Any

import torch
from torch import Tensor, nn


def spare(module: nn.Module) -> nn.Module:
    """The module, with each convolution made one that keeps no input while it is frozen."""
    for part in module.modules():
        made = _SPARING.get(type(part))
        if made is not None and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            part.__class__ = made
    return module


class _InputGradient(torch.autograd.Function):
    """A convolution of which only the input has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.weight = (
            weight  # not saved as torch saves: a block that is computed again can then stop in front of this layer
        )
        ctx.how, ctx.shape, ctx.bias = how, x.shape, None if bias is None else list(bias.shape)
        stride, padding, dilation, groups = how
        where = [0] * len(stride)
        return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, where, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        stride, padding, dilation, groups = ctx.how
        shape = grad.new_empty(ctx.shape)  # its numbers are not looked at; a view of fewer would be copied
        found, _, _ = torch.ops.aten.convolution_backward(
            grad, shape, ctx.weight, ctx.bias, stride, padding, dilation, False, [0] * len(stride), groups,
            [True, False, False],
        )  # fmt: skip
        return found, None, None, None


def _convolve(layer: Any, x: Tensor) -> Tensor:
    trained = layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad)
    if trained or not x.requires_grad or not torch.is_grad_enabled():
        return super(type(layer), layer).forward(x)
    x, weight, bias = lowered(x, layer.weight, layer.bias)
    how = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
    found: Tensor = _InputGradient.apply(x, weight, bias, how)
    return found


def lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As mixed precision has them, if it is at work."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x, weight, bias
    kind = torch.get_autocast_dtype(device)
    return x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)


class Conv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, x)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, x)


class Conv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, x)


_SPARING: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}
