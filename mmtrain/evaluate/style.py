"""The metric of style for a brand that has no truth to read: how like a clip is to the brand's own held-out pictures,
in what they show, in texture and in colour.

CLIP-I: mean cosine of CLIP embeddings with the pictures' (Ruiz et al. 2023). Texture: distance of Gram matrices (Gatys
et al. 2016), of random filters in the place of VGG's. Palette: sliced Wasserstein distance of the pixels' colours, in
levels of 255.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.evaluate.cases import Case, Numbers
from mmtrain.evaluate.forgetting import embedded
from mmtrain.evaluate.reference import reference

_DIRECTIONS, _QUANTILES = 32, 64
_KERNELS = 24


class Style:
    """``CLIP-I`` with the model's name; ``texture distance``; ``palette distance``.

    Args:
        path: folder or hub id of a CLIP.
        reference: shards of the brand's pictures.
    """

    lower_is_better = ("texture distance", "palette distance")

    def __init__(self, *, path: str, reference: str | None = None) -> None:
        self.clip, self.name = CLIP(path=path), f"CLIP-I ({Path(path).name})"
        own = [frames[0] for frames in _pictures(reference)]
        self.seen = torch.stack([embedded(self.clip, frame[None]) for frame in own])
        self.gram = np.mean([gram(frame) for frame in own], axis=0)
        self.colours = np.mean([colours(frame) for frame in own], axis=0)

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``."""
        chosen = frames[np.unique(np.linspace(0, len(frames) - 1, min(4, len(frames))).round().astype(int))]
        alike = float((self.seen @ embedded(self.clip, frames)).mean())
        texture = np.mean([gram(frame) for frame in chosen], axis=0)
        tone = np.mean([colours(frame) for frame in chosen], axis=0)
        return {
            self.name: alike,
            "texture distance": float(np.linalg.norm(texture - self.gram)),
            "palette distance": float(np.abs(tone - self.colours).mean()),
        }


def _pictures(where: str | None) -> list[np.ndarray]:
    return list(reference(where, "style"))


def gram(frame: np.ndarray) -> np.ndarray:
    """Products ``[k k]`` of fixed random filters' answers, 5 x 5 at two scales, to a frame uint8 ``[h w c]``.

    Random filters tell textures apart nearly as trained ones do (Ustyuzhaninov et al. 2017), and need no weights.
    """
    draw = torch.Generator().manual_seed(0)
    kernels = torch.randn(_KERNELS, 3, 5, 5, generator=draw)
    kernels = kernels - kernels.mean((2, 3), keepdim=True)
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255
    answers = []
    for scale in (1, 2):
        small = F.avg_pool2d(pixels, scale) if scale > 1 else pixels
        seen = F.relu(F.conv2d(small, kernels))[0].flatten(1)
        answers.append(seen @ seen.T / seen.shape[1])
    return torch.block_diag(*answers).numpy()


def colours(frame: np.ndarray) -> np.ndarray:
    """Quantiles ``[directions quantiles]`` of a frame's pixels along fixed directions of RGB: what the Wasserstein
    distance along each is the mean absolute difference of."""
    rng = np.random.Generator(np.random.Philox(key=0))
    directions = rng.normal(size=(3, _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    along = frame.reshape(-1, 3).astype(np.float64) @ directions
    found: np.ndarray = np.quantile(along, (np.arange(_QUANTILES) + 0.5) / _QUANTILES, axis=0).T
    return found
