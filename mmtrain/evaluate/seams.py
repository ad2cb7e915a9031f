"""The metric of long video: what shows where chunks meet, and how far the end is from the beginning. Pixels alone."""

import numpy as np

from mmtrain.evaluate.cases import Case, Numbers
from mmtrain.sample.chunks import OVERLAP, drift, seams

_SHOWS = 1.5  # times the median change from frame to frame; above it a cut is seen


class Seams:
    """``seamless``: whether no two chunks meet with a change above 1.5 times the median one; ``seam jump``: that ratio
    for the worst seam; ``colour drift``: levels of 255 by which the worst channel's mean moves from the first 15 % of
    frames to the last. A clip of one chunk has none of them.
    """

    lower_is_better = ("seam jump", "colour drift")

    def __init__(self) -> None:
        self.length: int | None = None

    def chunked(self, length: int | None) -> None:
        """Told before a model's first clip of how many frames its chunks are."""
        self.length = length

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``."""
        if self.length is None or len(frames) <= self.length:
            return {"seamless": None, "seam jump": None, "colour drift": None}
        jump = seams(frames, self.length, OVERLAP)
        return {"seamless": jump <= _SHOWS, "seam jump": jump, "colour drift": drift(frames)["colour"]}
