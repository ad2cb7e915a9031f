"""Something carried along with what moves between two frames: each place takes it from where the frame before looks
most alike, as block matching finds it (Jain & Jain 1981), a block for every pixel."""

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE = 64  # pixels of the shorter side on which places are compared; larger frames are reduced to about it
_REACH = 5  # of those pixels, how far away a place is looked for
_BLOCK = 7  # of those pixels, the side of what is compared around a place
_FAR = 2e-3  # error that a pixel of distance counts as, so that what looks alike everywhere stays where it is


def carried(what: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """``what``, which lies over ``before``, moved to lie over ``after``; all ``[b c h w]``, the frames in [0, 1]."""
    height, width = before.shape[-2:]
    scale = max(1, min(height, width) // _SIDE)
    dy, dx = (
        F.interpolate(moved * scale, (height, width), mode="nearest").long().expand_as(what)
        for moved in _moved(*(F.avg_pool2d(frames, scale) for frames in (before, after)))
    )
    y = (torch.arange(height)[:, None] + dy).clamp(0, height - 1)
    x = (torch.arange(width) + dx).clamp(0, width - 1)
    return what.flatten(2).gather(2, (y * width + x).flatten(2)).view_as(what)


def _moved(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """For each place of ``after``, how many rows and columns away it was in ``before``, two of ``[b 1 h w]``."""
    height, width = after.shape[-2:]
    wide = F.pad(before, (_REACH,) * 4, mode="replicate")
    least = torch.full_like(after[:, :1], torch.inf)
    rows, columns = torch.zeros_like(least), torch.zeros_like(least)
    for dy in range(-_REACH, _REACH + 1):
        for dx in range(-_REACH, _REACH + 1):
            there = wide[..., _REACH + dy :, _REACH + dx :][..., :height, :width]
            unlike = (there - after).abs().mean(1, keepdim=True)
            error = (
                F.avg_pool2d(unlike, _BLOCK, 1, _BLOCK // 2, count_include_pad=False) + _FAR * (dy**2 + dx**2) ** 0.5
            )
            less = error < least
            least = torch.where(less, error, least)
            rows, columns = rows.masked_fill(less, dy), columns.masked_fill(less, dx)
    return rows, columns
