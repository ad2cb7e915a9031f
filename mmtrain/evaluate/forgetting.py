"""The metric of forgetting: how far an adapter moves what a model makes of prompts that do not call for it."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.batch import to_unit
from mmtrain.evaluate.cases import Case, Numbers

_FRAMES = 4  # looked at, evenly through a clip


class Forgetting:
    """``forgetting``: 1 - cosine of the adapted clip's embedding with that of the base's clip of the same prompt and
    seed, by a CLIP whose name the number bears; ``pixels forgotten``: the mean difference of a pixel, in levels of 255.
    Both are exactly 0 where the clips are equal. A prompt that has the brand's words around it is not asked.

    Args:
        path: folder or hub id of a CLIP.
    """

    def __init__(self, *, path: str) -> None:
        self.clip, self.name = CLIP(path=path), Path(path).name
        self.lower_is_better = (f"forgetting ({self.name})", "pixels forgotten")

    def against(self, frames: np.ndarray, base: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]`` against the base's."""
        if case.plain is not None:
            return dict.fromkeys(self.lower_is_better)
        moved = 0.0
        if not np.array_equal(frames, base):
            moved = 1 - float((embedded(self.clip, frames) * embedded(self.clip, base)).sum())
        levels = float(np.abs(frames.astype(np.float32) - base).mean())
        return dict(zip(self.lower_is_better, (moved, levels), strict=True))


@torch.no_grad()
def embedded(clip: CLIP, frames: np.ndarray) -> torch.Tensor:
    """A clip's embedding ``[d]`` of length 1: the mean of some of its frames'."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int))
    seen = clip.embed_images(to_unit(frames[chosen].copy()).to(clip.model.device))
    return F.normalize(F.normalize(seen, dim=-1).mean(0), dim=-1)
