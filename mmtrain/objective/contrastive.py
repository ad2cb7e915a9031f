"""Contrastive alignment of two towers in one space."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.batch import Batch, Loss
from mmtrain.rng import Rng

MAX_LOG_SCALE = math.log(100.0)


def symmetric(first: Tensor, second: Tensor, log_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE per pair, ``[b]``: ½[CE(s·ABᵀ) + CE(s·BAᵀ)] with s = exp(log_scale).

    Radford et al. 2021, figure 3. ``first`` and ``second`` are ``[b d]`` and need not be normalised; log_scale is
    clamped at ln 100 as there.
    """
    scale = torch.as_tensor(log_scale, device=first.device).clamp(max=MAX_LOG_SCALE).exp()
    logits = scale * F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T
    pairs = torch.arange(len(first), device=first.device)
    one, other = (F.cross_entropy(side, pairs, reduction="none") for side in (logits, logits.T))
    return (one + other) / 2


class Contrastive:
    """CLIP's loss between captions and pictures or clips."""

    def __call__(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        """Loss per pair, from pixels or from cached features."""
        images = backbone.embed_visual(batch)
        text = backbone.embed_text(batch.captions)
        per_sample = symmetric(images, text, backbone.log_scale)
        with torch.no_grad():
            best = (F.normalize(images, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
            hits = (best.cpu() == torch.arange(len(batch))).float().mean()
            scale = backbone.log_scale.detach().exp()
        return Loss(per_sample, {"recall@1": hits, "scale": scale})
