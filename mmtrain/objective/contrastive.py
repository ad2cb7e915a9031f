"""Contrastive alignment of two towers in one space by InfoNCE. SigLIP's loss is `siglip.py`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.objective.tiles import Compared, Names, infonce
from mmtrain.objective.whole import WholeBatch, limited

TILE = 512


def symmetric(first: Tensor, second: Tensor, log_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE per pair, ``[b]``: ½[CE(s·ABᵀ) + CE(s·BAᵀ)] with s = exp(log_scale), over all ranks.

    Radford et al. 2021, figure 3. ``first`` and ``second`` are ``[b d]`` and need not be normalised; log_scale is
    limited to ln 100 as there; every pair is a negative of every other.
    """
    scale = limited(torch.as_tensor(log_scale, device=first.device, dtype=first.dtype))
    sides = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    return infonce(*sides, scale, Names.apart(len(first), first.device), TILE).loss


class Contrastive(WholeBatch):
    """CLIP's loss (Radford et al. 2021): each pair against all others of the batch, of all ranks.

    Pairs that share a caption or a picture are positives: they are never each other's negatives.
    """

    def compare(self, backbone: Any, shown: Tensor, said: Tensor, names: Names) -> Compared:
        return infonce(shown, said, limited(backbone.log_scale).to(shown.dtype), names, self.tile)
