"""Metrics of sets, on a local CLIP's features: how far the clips of a model are from a brand's own, and how unlike each
other. Collecting and comparing is `sets.py`'s, the formulas are `distances.py`'s."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.batch import to_unit
from mmtrain.evaluate import distances
from mmtrain.evaluate.reference import reference as pictures

_FRAMES = 8  # of a clip, evenly


class Diversity:
    """``diversity``: mean of 1 - cosine between the clips of one prompt's seeds (``--seeds``); between prompts where
    each has one.

    Args:
        path: folder or hub id of a CLIP.
    """

    lower_is_better = ()

    def __init__(self, *, path: str) -> None:
        self.clip, self.name = CLIP(path=path), f"diversity ({Path(path).name})"

    def features(self, frames: np.ndarray) -> np.ndarray:
        """``[d]``, of length 1."""
        mean = each(self.clip, frames).mean(0)
        return np.asarray(mean / np.linalg.norm(mean))

    def of_set(self, features: np.ndarray, owners: np.ndarray) -> dict[str, float]:
        return {self.name: distances.diversity(features, owners)}


class Distances:
    """``Fréchet``, ``kernel`` and ``CMMD`` distance of the clips' CLIP embeddings from the brand's, and ``Fréchet
    clip``: the first of (mean embedding, mean change from frame to frame), in the way of FVD. Named after the feature
    model: they are no FID and no FVD, and compare with no published number. Of few clips the Fréchet distance is biased
    upwards; the kernel's is not.

    Args:
        path: folder or hub id of a CLIP.
        reference: shards of the brand's pictures or clips.
    """

    def __init__(self, *, path: str, reference: str | None = None) -> None:
        self.clip, self.name = CLIP(path=path), Path(path).name
        own = [self.features(frames) for frames in pictures(reference, "distances", num_frames=None)]
        self.own = np.stack(own)
        self.lower_is_better = tuple(f"{kind} ({self.name})" for kind in ("Fréchet", "kernel", "CMMD", "Fréchet clip"))

    def features(self, frames: np.ndarray) -> np.ndarray:
        """``[3 d]``: the first frame's embedding, the mean over frames, the mean change between frames."""
        seen = each(self.clip, frames)
        change = np.abs(np.diff(seen, axis=0)).mean(0) if len(seen) > 1 else np.zeros_like(seen[0])
        return np.concatenate([seen[0], seen.mean(0), change])

    def of_set(self, features: np.ndarray, owners: np.ndarray) -> dict[str, float]:
        d = features.shape[1] // 3
        first, own = features[:, :d], self.own[:, :d]
        values = [distances.frechet(first, own), distances.kernel(first, own), distances.cmmd(first, own)]
        values.append(distances.frechet(features[:, d:], self.own[:, d:]))
        return dict(zip(self.lower_is_better, values, strict=True))


@torch.no_grad()
def each(clip: CLIP, frames: np.ndarray) -> np.ndarray:
    """Embeddings ``[n d]`` of length 1 of some frames."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int))
    seen = clip.embed_images(to_unit(frames[chosen].copy()).to(clip.model.device))
    return np.asarray(F.normalize(seen, dim=-1).double().cpu().numpy())
