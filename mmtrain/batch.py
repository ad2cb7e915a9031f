"""What travels from data to loss. One letter per axis, everywhere:

b batch · t frames · c channels · h height · w width · l tokens · d width of a feature
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One decoded sample: an image is a clip of one frame."""

    key: str
    frames: np.ndarray  # uint8 [t h w c]
    fps: float
    captions: tuple[str, ...]
    truth: dict[str, Any] | None = None


@dataclass
class Batch:
    """Samples stacked for one step.

    ``frames`` ``[b t c h w]`` are bytes as they were decoded, uint8 in 0 to 255, until `to` has brought them to a
    device (a quarter of the bytes travels); there they are float32 in [-1, 1]. They are None when encoder outputs are
    read from a cache; ``encoded`` holds those, named as the backbone's ``encode`` names them, first axis b.
    ``positions`` are the samples' places in the run's global order and key every random draw. ``masks``, float32
    ``[b h w]`` in [0, 1], say which places of the frames count; None where no sample of the batch brought one.
    """

    keys: list[str]
    positions: list[int]
    captions: list[str]
    frames: Tensor | None = None
    encoded: dict[str, Tensor] = field(default_factory=dict)
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, places: slice) -> "Batch":
        """Some of the samples, as views."""
        frames = None if self.frames is None else self.frames[places]
        encoded = {name: tensor[places] for name, tensor in self.encoded.items()}
        masks = None if self.masks is None else self.masks[places]
        return Batch(self.keys[places], self.positions[places], self.captions[places], frames, encoded, masks)

    def to(self, device: torch.device | str) -> "Batch":
        """On a device, where an objective takes it."""
        frames = None if self.frames is None else self.frames.to(device, non_blocking=True)
        if frames is not None and frames.dtype == torch.uint8:
            frames = unit(frames)
        encoded = {name: tensor.to(device, non_blocking=True) for name, tensor in self.encoded.items()}
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Batch(self.keys, self.positions, self.captions, frames, encoded, masks)


def unit(frames: Tensor) -> Tensor:
    """Bytes → float32 in [-1, 1], axes and their order in memory as they are."""
    return frames.float().div_(127.5).sub_(1.0)


def to_unit(frames: np.ndarray) -> Tensor:
    """uint8 ``[t h w c]`` → float32 ``[t c h w]`` in [-1, 1]."""
    return unit(torch.from_numpy(frames).permute(0, 3, 1, 2))


def to_bytes(frames: Tensor) -> np.ndarray:
    """float ``[t c h w]`` in [-1, 1] → uint8 ``[t h w c]``, rounded as diffusers' image processor rounds."""
    scaled = (frames.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return (scaled * 255).round().astype(np.uint8)


@dataclass
class Loss:
    """What an Objective returns: one loss per sample ``[b]``, with gradients, and detached scalars for the log."""

    per_sample: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
