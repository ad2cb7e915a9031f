"""Finds the patches of a clip's frames that differ from a plain background: pixels in, measured blobs out.

Holds segmentation only; following blobs through time and naming what they are is `evaluate/judge.py`. numpy alone,
so that a clip is read in some ten milliseconds on one core and without an image library.
"""

from dataclasses import dataclass

import numpy as np

from mmtrain.data import world

_PALETTE = np.array(list(world.COLOURS.values()), np.float32)

DISTINCT = 80.0  # RGB distance; the two closest sprite colours are 118 apart
OPAQUE = 0.45  # share of a sprite's contrast above which a pixel belongs to it
LEAST_CONTRAST = 60.0  # RGB distance that a sprite is assumed to keep from its background; the palettes keep 109
MIN_AREA = 16  # pixels of a 64-pixel frame; the world's smallest sprite covers 43


@dataclass(frozen=True)
class Blob:
    """A patch of one frame that differs from the background; lengths in pixels of the frame."""

    frame: int
    x: float  # centroid
    y: float
    area: float  # sum of the soft cover, which blur leaves alone
    rgb: np.ndarray  # median of the core, [3]
    cover: np.ndarray  # [h w] in [0, 1], a window around the blob
    corner: tuple[int, int]  # y, x of the window


def blobs(frames: np.ndarray, ground: np.ndarray, scale: float) -> list[Blob]:
    """Every blob of every frame, frame by frame. ``ground`` ``[t 3]`` is each frame's background colour."""
    difference = frames - ground[:, None, None]
    t, y, x = np.nonzero(np.einsum("thwc,thwc->thw", difference, difference) > (OPAQUE * LEAST_CONTRAST) ** 2)
    away = difference[t, y, x]  # from here on, only the pixels [n] that could be a sprite's
    hue, opaque = _hues(away, ground[t])
    t, y, x, away, hue = t[opaque], y[opaque], x[opaque], away[opaque], hue[opaque]
    owner = np.full(frames.shape[:3], -1, np.int32)
    patch = _components(t, y, x, *frames.shape[1:3])
    least = MIN_AREA * scale * scale
    order = np.argsort(patch, kind="stable")
    parts: list[np.ndarray] = []
    for at in np.split(order, np.flatnonzero(np.diff(patch[order])) + 1):
        if len(at) >= least:
            parts += [at[part] for part in _split(away[at], hue[at], least)]
    for number, at in enumerate(parts):
        owner[t[at], y[at], x[at]] = number
    return [
        _measure(difference, ground, owner, number, (int(t[at[0]]), y[at], x[at]), away[at], scale)
        for number, at in enumerate(parts)
    ]


def _hues(away: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index ``[n]`` of the sprite colour towards which each pixel leaves its background, and whether it gets there.

    A pixel that a sprite covers to a share a is ground + a (colour - ground), so the direction tells the colour at
    any a, and edges and blur do not read as a colour in between. ``away`` is pixel - ground; both are ``[n 3]``.
    """
    best, hue, share = np.full(len(away), -np.inf, np.float32), np.zeros(len(away), np.intp), np.zeros(len(away))
    for index, colour in enumerate(_PALETTE):
        towards = colour - ground
        contrast = np.maximum(np.sqrt((towards * towards).sum(1)), LEAST_CONTRAST)
        along = (away * towards).sum(1) / contrast
        better = along > best
        best[better], hue[better], share[better] = along[better], index, (along / contrast)[better]
    return hue, share > OPAQUE


def _components(t: np.ndarray, y: np.ndarray, x: np.ndarray, h: int, w: int) -> np.ndarray:
    """A number per pixel (t, y, x), given in C order: equal for pixels of a frame that touch by a side.

    Works on runs of pixels in a row: a clip has some hundred runs where it has thousands of pixels.
    """
    place = (t * (h + 1) + y) * (w + 1) + x  # the spare row and column keep rows and frames apart
    heads = np.flatnonzero(np.diff(place, prepend=-2) != 1)
    lengths = np.diff(heads, append=len(place))
    starts = place[heads]
    ends = starts + lengths
    below = starts + w + 1
    first, last = np.searchsorted(ends, below, side="right"), np.searchsorted(starts, below + lengths)
    parent = list(range(len(starts)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for touching in range(low, high):
            parent[root(touching)] = root(run)
    return np.repeat(np.array([root(run) for run in range(len(parent))], np.intp), lengths)


def _split(pixels: np.ndarray, hues: np.ndarray, least: float) -> list[np.ndarray]:
    """Index arrays of the blobs in one component: two if two clearly different colours share it, else one.

    A fringe or a speckle of another hue stays with its blob: only a large part of another colour is another object.
    """
    counts = np.bincount(hues, minlength=len(_PALETTE))
    second, first = np.argsort(counts)[-2:]
    whole = np.arange(len(hues))
    if counts[second] < max(least, 0.25 * len(hues)):
        return [whole]
    one, other = whole[hues == first], whole[hues == second]
    apart = np.linalg.norm(np.median(pixels[one], axis=0) - np.median(pixels[other], axis=0))
    return [one, other] if apart > DISTINCT else [whole]


def _measure(
    difference: np.ndarray,
    ground: np.ndarray,
    owner: np.ndarray,
    number: int,
    at: tuple[int, np.ndarray, np.ndarray],
    away: np.ndarray,
    scale: float,
) -> Blob:
    """Measures blob ``number``, whose pixels lie ``at`` (t, y, x) and are ``away`` ``[n 3]`` from the background.

    Looks at a window two pixels wider than those pixels, to keep the soft edge, less what other blobs own.
    """
    t, y, x = at
    edge = int(np.ceil(2 * scale))
    top, left = max(int(y.min()) - edge, 0), max(int(x.min()) - edge, 0)
    window = (t, slice(top, int(y.max()) + edge + 1), slice(left, int(x.max()) + edge + 1))
    strength = (away * away).sum(1)
    core = away[strength >= 0.7 * np.sort(strength)[int(0.9 * len(strength))]]
    towards = np.sort(core, axis=0)[len(core) // 2]  # the median; numpy's own is ten times slower on so few
    cover = difference[window] @ (towards / max(float(towards @ towards), 1.0))
    mine = (owner[window] == number) | (owner[window] < 0)
    cover = np.where(mine & (cover > 0.15), np.minimum(cover, 1.0), 0.0)
    column, row = cover.sum(0), cover.sum(1)
    area = float(row.sum())
    return Blob(
        frame=t,
        x=float(column @ np.arange(len(column))) / area + left + 0.5,
        y=float(row @ np.arange(len(row))) / area + top + 0.5,
        area=area,
        rgb=towards + ground[t],
        cover=cover,
        corner=(top, left),
    )
