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
_INSIDE = 4  # pixels that are left of a sprite to tell its colour
RIM = 40.0  # RGB distance from a sprite's inside beyond which its edge is an outline


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
    rim: float = 0.0  # width of the outline that it has, which cover and area take in


def blobs(frames: np.ndarray, ground: np.ndarray, scale: float, outline: float = 0.0) -> list[Blob]:
    """Every blob of every frame, frame by frame. ``ground`` ``[t 3]`` is each frame's background colour.

    Where sprites may have an ``outline`` that wide, patches of two colours that touch are one blob, of its inside's
    colour.
    """
    difference = frames - ground[:, None, None]
    t, y, x = np.nonzero(np.einsum("thwc,thwc->thw", difference, difference) > (OPAQUE * LEAST_CONTRAST) ** 2)
    away = difference[t, y, x]  # from here on, only the pixels [n] that could be a sprite's
    hue, opaque = _hues(away, ground[t])
    t, y, x, away, hue = t[opaque], y[opaque], x[opaque], away[opaque], hue[opaque]
    owner = np.full(frames.shape[:3], -1, np.int32)
    together = _near if outline else _components
    patch = together(t, y, x, *frames.shape[1:3])
    least = MIN_AREA * scale * scale
    order = np.argsort(patch, kind="stable")
    parts: list[np.ndarray] = []
    for at in np.split(order, np.flatnonzero(np.diff(patch[order])) + 1):
        if len(at) >= least:
            parts += [at] if outline else [at[part] for part in _split(away[at], hue[at], least)]
    for number, at in enumerate(parts):
        owner[t[at], y[at], x[at]] = number
    if outline:
        return [_outlined(frames[t[at[0]]], (int(t[at[0]]), y[at], x[at]), outline) for at in parts]
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


def _near(t: np.ndarray, y: np.ndarray, x: np.ndarray, h: int, w: int) -> np.ndarray:
    """As `_components`, of pixels with at most two others between them.

    Between an outline and an inside of opposite colours, blur leaves a line of the background's.
    """
    wide = np.zeros((int(t.max(initial=0)) + 1, h + 2, w + 2), bool)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
        wide[t, y + 1 + dy, x + 1 + dx] = True
    number = np.zeros(wide.shape, np.intp)
    frame, row, column = np.nonzero(wide)
    number[frame, row, column] = _components(frame, row, column, h + 2, w + 2)
    found: np.ndarray = number[t, y + 1, x + 1]
    return found


def _outlined(frame: np.ndarray, at: tuple[int, np.ndarray, np.ndarray], outline: float) -> Blob:
    """The blob of the pixels ``at`` (t, y, x) of its frame ``[h w 3]``, with the outline that it has or none.

    Pixels are peeled off row by row, twice as many rows as the outline is wide, since one that a network draws may be
    wider, but not the last few. What is left is the inside; where a row half way through the outline is of another
    colour, it is an outline's (the first row is half the background's).
    """
    t, y, x = at
    top, left = int(y.min()), int(x.min())
    own = np.zeros((int(y.max()) - top + 1, int(x.max()) - left + 1), bool)
    own[y - top, x - left] = True
    own = _closed(own, int(outline))
    y, x = (at + corner for at, corner in zip(np.nonzero(own), (top, left), strict=True))
    rows = [own]
    while len(rows) <= 2 * outline and (peeled := _peeled(rows[-1])).sum() >= _INSIDE:
        rows.append(peeled)
    pixels = frame[top : top + own.shape[0], left : left + own.shape[1]].astype(np.float32)
    inside, half = np.median(pixels[rows[-1]], axis=0), int(outline / 2)
    edge = rows[half] & ~rows[half + 1] if half + 1 < len(rows) else rows[-1]
    has = float(np.linalg.norm(np.median(pixels[edge], axis=0) - inside)) > RIM
    return Blob(
        frame=t,
        x=float(x.mean()) + 0.5,
        y=float(y.mean()) + 0.5,
        area=float(len(x)),
        rgb=inside,
        cover=own.astype(np.float64),
        corner=(top, left),
        rim=outline if has else 0.0,
    )


def _closed(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask ``[h w]`` with gaps of up to twice the reach closed, and what it encloses in its rows and its columns."""
    wide = np.pad(mask, reach)
    for _ in range(reach):
        wide = ~_peeled(np.pad(~wide, 1, constant_values=True))[1:-1, 1:-1]
    for _ in range(reach):
        wide = _peeled(wide)
    closed = wide[reach:-reach, reach:-reach]
    found: np.ndarray = closed | _between(closed) & _between(closed.T).T
    return found


def _between(mask: np.ndarray) -> np.ndarray:
    """Of each row of a mask ``[h w]`` what lies from its first pixel to its last."""
    found: np.ndarray = np.maximum.accumulate(mask, 1) & np.maximum.accumulate(mask[:, ::-1], 1)[:, ::-1]
    return found


def _peeled(mask: np.ndarray) -> np.ndarray:
    """A mask ``[h w]`` without the pixels that touch the outside by a side; beyond the edge is outside."""
    wide = np.pad(mask, 1)
    inner: np.ndarray = mask & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]
    return inner
