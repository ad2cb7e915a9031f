"""The metric of the world's brand kit: which parts of the house style a clip shows, read from its pixels alone.

For a real brand there is no such truth; this is where adherence and what it costs can be counted.
"""

import numpy as np

from mmtrain.data import world
from mmtrain.data.brand import AMPLITUDE, Brand, logo, stripes
from mmtrain.evaluate.cases import Case, Numbers

_NEAR = 80.0  # RGB distance from the outline's colour beyond which a pixel is not of it, whatever else it is
_APART = 60.0  # RGB distance from the background beyond which a pixel is of a sprite
_LEAST_OUTLINE = 0.06  # share of the sprites' pixels; a large circle's outline is 0.16
_STRIPED = 0.2  # of the stripes' height; a frozen codec keeps 0.25 to 0.7 of it
_ENOUGH = 3  # parts of four


class BrandStyle:
    """``style adherence``: whether at least three of ``palette``, ``outline``, ``pattern`` and ``logo`` are there, each
    of them in most frames."""

    def __init__(self) -> None:
        self.brand = Brand()
        plain = [*world.COLOURS.values(), *world.BACKGROUNDS.values(), *self.brand.palette().values()]
        self.others = np.array(plain, np.float64)

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``, square."""
        found = np.array([self._parts(frame.astype(np.float64)) for frame in frames])
        shown = [bool(share >= 0.5) for share in found.mean(0)]
        parts = dict(zip(("palette", "outline", "pattern", "logo"), shown, strict=True))
        return {"style adherence": sum(shown) >= _ENOUGH, **parts}

    def _parts(self, frame: np.ndarray) -> tuple[bool, bool, bool, bool]:
        side = len(frame)
        ground = np.median(frame.reshape(-1, 3), 0)
        sprite = np.linalg.norm(frame - ground, axis=-1) > _APART
        lined = self._lined(frame)
        mark = np.zeros((side, side), bool)
        mark[logo(side)] = True
        return (
            self._tinted(frame[sprite & ~lined & ~mark]),
            bool((lined & ~mark).sum() >= _LEAST_OUTLINE * max(1, (sprite & ~mark).sum())),
            _striped(frame, ~sprite & ~mark),
            bool(lined[mark].mean() >= 0.5),
        )

    def _lined(self, frame: np.ndarray) -> np.ndarray:
        """Where a frame has the outline's colour: nearer to it than to any other of the world or the brand."""
        away = np.linalg.norm(frame - np.array(self.brand.outline), axis=-1)
        other = np.linalg.norm(frame[:, :, None] - self.others, axis=-1).min(-1)
        found: np.ndarray = (away < other) & (away < _NEAR)
        return found

    def _tinted(self, pixels: np.ndarray) -> bool:
        """Whether pixels ``[n 3]`` are nearer to the brand's colours than to the world's, most of them."""
        if not len(pixels):
            return False
        plain, tinted = (np.array([*colours.values()], np.float64) for colours in (world.COLOURS, self.brand.palette()))
        away = [np.linalg.norm(pixels[:, None] - palette, axis=-1).min(1) for palette in (plain, tinted)]
        return bool((away[1] < away[0]).mean() >= 0.6)


def _striped(frame: np.ndarray, ground: np.ndarray) -> bool:
    """Whether the background's brightness goes with the stripes by enough of theirs."""
    pattern = stripes(len(frame))[ground]
    grey = frame.mean(-1)[ground]
    if not len(grey) or not pattern.std():
        return False
    return bool(((grey - grey.mean()) * (pattern - pattern.mean())).mean() >= _STRIPED * AMPLITUDE * pattern.var())
