"""The metric of movement: how much a clip moves, how much of that no movement explains, and frames that are broken.

Flicker alone prefers frozen and blurred clips, so the amount of motion always stands beside it. Pixels alone, no model.
"""

from itertools import pairwise

import numpy as np

from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case, Numbers

_BLOCK, _REACH = 8, 4  # pixels of a 64-pixel frame: side of a block, how far it is looked for
_BLACK, _FLAT = 8.0, 1.0  # levels: mean below which a frame is black, deviation below which it shows nothing


class Motion:
    """``motion amount``: mean change of a pixel from frame to frame, in levels of 255. ``warping error``: what of it
    is left when every block is taken from where it fits best in the frame before: flicker, and things that appear or
    vanish. ``broken frames``: the share of frames that are black or of one colour.
    """

    lower_is_better = ("warping error", "broken frames")

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``.

        Raises:
            UserError: one frame alone.
        """
        if len(frames) < 2:
            raise UserError("metric motion", "a clip of one frame", "at least 2", "make longer clips, or leave it out")
        grey = frames.astype(np.float32).mean(-1)
        change = float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())
        left = float(np.mean([warping_error(a, b) for a, b in pairwise(grey)]))
        bad = (grey.mean((1, 2)) < _BLACK) & (grey.std((1, 2)) < _BLACK) | (grey.std((1, 2)) < _FLAT)
        return {"motion amount": change, "warping error": left, "broken frames": float(bad.mean())}


def warping_error(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of ``after [h w]`` from the blocks of ``before [h w]`` that fit it best."""
    scale = max(1, min(before.shape) // 64)
    block, reach = _BLOCK * scale, _REACH * scale
    height, width = (side // block * block for side in after.shape)
    wide = np.pad(before, reach, mode="edge")
    best = np.full((height // block, width // block), np.inf, np.float32)
    for dy in range(0, 2 * reach + 1, scale):
        for dx in range(0, 2 * reach + 1, scale):
            moved = wide[dy : dy + height, dx : dx + width]
            error = np.abs(moved - after[:height, :width]).reshape(height // block, block, width // block, block)
            best = np.minimum(best, error.mean((1, 3)))
    return float(best.mean())
