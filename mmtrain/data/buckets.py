"""Buckets: which samples may share a batch, because they are brought to one size and one length. From the index alone.

What order batches of several buckets come in is `order.py`; the pixels are cut in `decode.py`.
"""

import json

import numpy as np

from mmtrain.data.decode import MAX_FPS
from mmtrain.errors import UserError


class Buckets:
    """Sizes of about one area and many shapes, and lengths; a sample goes where it loses least.

    Its size is the one whose ratio of width to height is nearest to its own, its length the longest that the clip has.

    Args:
        side: pixels; the area of a frame is about its square.
        multiple: of pixels; each width and height is one of it.
        max_ratio: of the longer side to the shorter, at most.
        num_frames: lengths in frames; of pictures, [1]. A clip shorter than all of them is put to the shortest, and
            counted as too short when it is decoded.

    Raises:
        UserError: for numbers that give no size.
    """

    def __init__(self, *, side: int, multiple: int, max_ratio: float, num_frames: list[int]) -> None:
        if not 1 <= multiple <= side:
            raise UserError("buckets", f"side {side}, multiple {multiple}", "1 <= multiple <= side", "change one")
        if not 1 <= max_ratio < 100:
            raise UserError("buckets.max_ratio", f"{max_ratio:g}", "a ratio of 1 or more", "give 2 for 2:1 to 1:2")
        if not num_frames or min(num_frames) < 1:
            raise UserError("buckets.num_frames", str(num_frames), "lengths of 1 or more", "give [1] for pictures")
        self.config = {
            "side": side,
            "multiple": multiple,
            "max_ratio": float(max_ratio),
            "num_frames": sorted(set(num_frames)),
        }
        self.lengths: list[int] = sorted(set(num_frames))
        self.sizes = _sizes(side, multiple, max_ratio)

    def shape(self, bucket: int) -> tuple[tuple[int, int], int]:
        """((width, height) in pixels, frames) of a bucket."""
        length, size = divmod(bucket, len(self.sizes))
        return self.sizes[size], self.lengths[length]

    def name(self, bucket: int) -> str:
        (width, height), frames = self.shape(bucket)
        return f"{width}x{height}x{frames}"

    def assign(self, facts: np.ndarray, *, stride: int, fps: float | None) -> np.ndarray:
        """The bucket of each sample, int64 ``[n]``, of `FACTS` ``[n]``.

        Args:
            stride, fps: as `Look` has them: what is kept of a clip.
        """
        known = (facts["width"] > 0) & (facts["height"] > 0)  # else its header is damaged: any bucket will refuse it
        ratio = np.where(known, facts["width"], 1) / np.where(known, facts["height"], 1)
        logs = np.log([width / height for width, height in self.sizes])
        size = np.searchsorted((logs[1:] + logs[:-1]) / 2, np.log(ratio))
        length = np.searchsorted(self.lengths, _available(facts, stride, fps), side="right") - 1
        found: np.ndarray = np.maximum(length, 0) * len(self.sizes) + size
        return found.astype(np.int64)

    def __repr__(self) -> str:
        return json.dumps(self.config)


def _sizes(side: int, multiple: int, max_ratio: float) -> list[tuple[int, int]]:
    """(width, height), from the narrowest to the widest."""
    found: set[tuple[int, int]] = set()
    for long in range(multiple, int(side * max_ratio**0.5) + multiple, multiple):
        short = max(round(side * side / long / multiple) * multiple, multiple)
        if 1 <= long / short <= max_ratio:
            found |= {(long, short), (short, long)}
    if not found:
        came = f"side {side} of multiple {multiple}, ratio {max_ratio:g} at most"
        raise UserError("buckets", came, "a size of that area", "give a side that is a multiple")
    return sorted(found, key=lambda size: size[0] / size[1])


def _available(facts: np.ndarray, stride: int, fps: float | None) -> np.ndarray:
    """Frames that the longest window of each clip has, int64 ``[n]``."""
    frames = facts["num_frames"].astype(np.int64)
    if fps is None:
        return (frames - 1) // stride + 1
    seconds = (frames - 1) / np.clip(facts["fps"], 1 / MAX_FPS, MAX_FPS)
    return np.where(frames > 1, (seconds * fps / stride + 1e-6).astype(np.int64) + 1, frames)
