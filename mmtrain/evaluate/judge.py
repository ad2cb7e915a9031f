"""Reads a clip of the world back from its pixels, and says which of a caption's facts it fulfils.

Holds: pixels to blobs, blobs to tracks, tracks to shape, colour, size, motion and permanence, and the comparison with
a truth. Holds no model, no caption and no truth while reading: `read` sees frames alone, so that it judges a generated
clip and a drawn one alike. Clips are assumed to show plain sprites on a plain background, as `data/world.py` draws
them; the thresholds leave room for the blur, colour error and ringing of a small diffusion model and its codec.

Lengths are pixels of a 64-pixel frame; frames of another side are measured in the same unit.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from mmtrain.data import world
from mmtrain.errors import UserError

_NAMES = tuple(world.COLOURS)
_PALETTE = np.array(list(world.COLOURS.values()), np.float32)
_GROUNDS = np.array(list(world.BACKGROUNDS.values()), np.float32)

COLOUR_LIMIT = 80.0  # RGB distance; the two closest sprite colours are 118 apart, so at most one is within 59
BACKGROUND_LIMIT = 50.0  # RGB distance; the two closest backgrounds are 95 apart
OPAQUE = 0.45  # share of a sprite's contrast above which a pixel belongs to it
MIN_AREA = 16  # pixels; the world's smallest sprite covers 43
LEAST_CONTRAST = 60.0  # RGB distance that a sprite is assumed to keep from its background; the palettes keep 109
SHAPE_LIMIT = 0.78  # overlap (soft intersection over union) below which a blob is no shape at all
MOVED = 4.0  # pixels; the world's shortest move is 12.6, so a third of it
GREW = 1.45  # area, last over first; the world's least growth gives 2.0 between the frames compared
JUMP = 4.0  # pixels by which a step may differ from its neighbours; a circling sprite's differ by 2.1
_SHAPE_FRAMES = 5  # frames on which shapes are compared; more changes no answer and costs time


@dataclass(frozen=True)
class Found:
    """One object as read. An attribute is None where the pixels fit nothing that the world knows."""

    shape: str | None
    colour: str | None
    size: str
    motion: str | None
    track: np.ndarray  # float [t 2]: centre x, y per frame in pixels of a 64-pixel frame; NaN where it is not seen
    overlap: float  # soft intersection over union with the best shape, 1 is perfect


@dataclass(frozen=True)
class Reading:
    """What a clip shows.

    ``vanished``: an object is not there from the first frame to the last. ``jumped``: a centre makes a step that its
    neighbouring steps do not explain. Objects are in order of falling area.
    """

    background: str | None
    objects: tuple[Found, ...]
    vanished: bool
    jumped: bool


@dataclass(frozen=True)
class _Blob:
    """A patch of one frame that differs from the background; lengths in pixels of the frame."""

    frame: int
    x: float  # centroid
    y: float
    area: float  # sum of the soft cover, which blur leaves alone
    rgb: np.ndarray  # median of the core, [3]
    cover: np.ndarray  # [h w] in [0, 1], a window around the blob
    corner: tuple[int, int]  # y, x of the window


def read(frames: np.ndarray) -> Reading:
    """Reads frames uint8 ``[t h w c]`` (RGB); raises UserError for any other layout."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        came = f"came {frames.dtype} {list(frames.shape)}"
        raise UserError("judge", came, "wanted uint8 [t h w 3], t at least 1", "pass decoded RGB frames")
    scale = min(frames.shape[1:3]) / world.SIDE
    ground = np.median(frames[:, ::2, ::2].reshape(len(frames), -1, 3), axis=1).astype(np.float32)
    tracks = _link(_blobs(frames, ground, scale), scale)
    lasting = [t for t in tracks if len(t) >= max(2, len(frames) / 4) or len(frames) == 1]
    lasting.sort(key=lambda t: -float(np.median([b.area for b in t])))
    objects = tuple(_describe(t, len(frames), len(lasting), scale) for t in lasting)
    return Reading(
        background=_nearest(np.median(ground, axis=0), tuple(world.BACKGROUNDS), _GROUNDS, BACKGROUND_LIMIT),
        objects=objects,
        vanished=any(1 < len(t) < len(frames) for t in tracks),
        jumped=any(_jumps(f.track[~np.isnan(f.track[:, 0])]) for f in objects),
    )


def _nearest(rgb: np.ndarray, names: tuple[str, ...], palette: np.ndarray, limit: float) -> str | None:
    distance = np.linalg.norm(palette - rgb, axis=1)
    return names[int(distance.argmin())] if distance.min() <= limit else None


# ---- pixels to blobs ----


def _blobs(frames: np.ndarray, ground: np.ndarray, scale: float) -> list[_Blob]:
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
    counts = np.bincount(hues, minlength=len(_NAMES))
    second, first = np.argsort(counts)[-2:]
    whole = np.arange(len(hues))
    if counts[second] < max(least, 0.25 * len(hues)):
        return [whole]
    one, other = whole[hues == first], whole[hues == second]
    apart = np.linalg.norm(np.median(pixels[one], axis=0) - np.median(pixels[other], axis=0))
    return [one, other] if apart > COLOUR_LIMIT else [whole]


def _measure(
    difference: np.ndarray,
    ground: np.ndarray,
    owner: np.ndarray,
    number: int,
    at: tuple[int, np.ndarray, np.ndarray],
    away: np.ndarray,
    scale: float,
) -> _Blob:
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
    return _Blob(
        frame=t,
        x=float(column @ np.arange(len(column))) / area + left + 0.5,
        y=float(row @ np.arange(len(row))) / area + top + 0.5,
        area=area,
        rgb=towards + ground[t],
        cover=cover,
        corner=(top, left),
    )


# ---- blobs to tracks ----


def _link(blobs: Iterable[_Blob], scale: float) -> list[list[_Blob]]:
    """Blobs of the same object through the frames: the nearest of its colour, or one within six pixels of any colour.

    A blob of the same colour is taken however far it is: that is a jump, and `_jumps` says so.
    """
    tracks: list[list[_Blob]] = []
    by_frame: dict[int, list[_Blob]] = {}
    for blob in blobs:
        by_frame.setdefault(blob.frame, []).append(blob)
    for _, present in sorted(by_frame.items()):
        pairs = []
        for i, track in enumerate(tracks):
            for j, blob in enumerate(present):
                distance = float(np.hypot(track[-1].x - blob.x, track[-1].y - blob.y)) / scale
                alike = float(np.linalg.norm(track[-1].rgb - blob.rgb)) < COLOUR_LIMIT
                if alike or distance < 6:
                    pairs.append((distance + (0 if alike else world.SIDE), i, j))
        old, new = set(), set()
        for _, i, j in sorted(pairs):
            if i not in old and j not in new:
                tracks[i].append(present[j])
                old.add(i)
                new.add(j)
        tracks += [[blob] for j, blob in enumerate(present) if j not in new]
    return tracks


# ---- tracks to attributes ----


def _describe(track: list[_Blob], num_frames: int, num_objects: int, scale: float) -> Found:
    names = Counter(_nearest(b.rgb, _NAMES, _PALETTE, COLOUR_LIMIT) for b in track)
    colour, votes = names.most_common(1)[0]
    shape, overlap = _shape(track)
    halves = [_half(shape, b.area) for b in track]
    centres = np.full((num_frames, 2), np.nan)
    for blob, half in zip(track, halves, strict=True):
        centres[blob.frame] = blob.x, blob.y - _SINK[shape] * half
    centres /= scale
    border = float(np.mean(list(world.SIZES.values()))) * (1.0 if num_objects < 2 else 0.85)
    return Found(
        shape=shape if overlap >= SHAPE_LIMIT else None,
        colour=colour if votes >= 0.75 * len(track) else None,
        size="small" if float(np.median(halves[:3])) / scale < border else "large",
        motion=_motion(centres[~np.isnan(centres[:, 0])], np.array([b.area for b in track])),
        track=centres,
        overlap=overlap,
    )


# Area over squared half extent, and centroid below the centre in half extents, of `world.coverage`'s shapes.
_BAR = 1 / 2.8
_FILL = {"circle": np.pi, "square": 1.8**2, "triangle": 1.8**2 / 2, "cross": 8 * _BAR - 4 * _BAR**2}
_SINK = {"circle": 0.0, "square": 0.0, "triangle": 2 / 3 * 1.8 - 0.95, "cross": 0.0}


def _half(shape: str, area: float) -> float:
    return float(np.sqrt(area / _FILL[shape]))


def _shape(track: list[_Blob]) -> tuple[str, float]:
    """The shape whose drawing overlaps the blob best, and that overlap: the median over frames spread on the track."""
    chosen = [track[i] for i in np.unique(np.linspace(0, len(track) - 1, _SHAPE_FRAMES).round().astype(int))]
    overlaps = {shape: float(np.median([_overlap(shape, blob) for blob in chosen])) for shape in world.SHAPES}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best, overlaps[best]


def _overlap(shape: str, blob: _Blob) -> float:
    """Soft intersection over union of the blob with the shape of the same area and centroid, blurred as the blob is.

    Blur costs a sharp drawing up to a third of its overlap, the more the thinner the shape; so the drawing is softened
    step by step while that helps.
    """
    half = _half(shape, blob.area)
    (top, left), (h, w) = blob.corner, blob.cover.shape
    dy = (np.arange(h) + top + 0.5 - blob.y + _SINK[shape] * half)[:, None]
    dx = (np.arange(w) + left + 0.5 - blob.x)[None]
    drawn, best = world.coverage(shape, dx, dy, half), 0.0
    for _ in range(4):
        common = float(np.minimum(drawn, blob.cover).sum())
        overlap = common / (float(drawn.sum()) + blob.area - common)
        if overlap <= best:
            break
        best, drawn = overlap, _soften(drawn)
    return best


def _soften(image: np.ndarray) -> np.ndarray:
    """One step of blur (weights 1 2 1 along both axes, standard deviation 0.7 pixels) of ``[h w]``."""
    rows = 2 * image
    rows[1:] += image[:-1]
    rows[:-1] += image[1:]
    both = 2 * rows
    both[:, 1:] += rows[:, :-1]
    both[:, :-1] += rows[:, 1:]
    return both / 16


def _motion(centres: np.ndarray, areas: np.ndarray) -> str | None:
    """The motion of centres ``[t 2]`` in time order; None for one that the world does not know (to and fro, shrinking).

    Moving: the reach (largest distance from the start) says whether, the net displacement says where. Circling: comes
    back, and its path encloses an area. One displaced frame is no motion, hence the median of three.
    """
    path = _smooth(centres)
    start, end = path[:2].mean(0), path[-2:].mean(0)
    net = end - start
    length, reach = float(np.hypot(*net)), float(np.linalg.norm(path - start, axis=1).max())
    growth = float(np.median(areas[-3:]) / np.median(areas[:3]))
    if growth >= GREW and length < 1.5 * MOVED:
        return "growing"
    if reach < MOVED:
        return "still" if growth > 1 / GREW else None
    if length >= 0.7 * reach:
        towards = {n: (net @ np.array(d)) / np.hypot(*d) for n, d in world.DIRECTIONS.items()}
        return max(towards, key=lambda n: towards[n])
    x, y = path.T
    enclosed = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    round_enough = enclosed >= 0.3 * np.pi * (reach / 2) ** 2
    return "circling" if round_enough and reach >= 1.5 * MOVED else None


def _smooth(path: np.ndarray) -> np.ndarray:
    """Median of three neighbours in time; the ends take their nearest three."""
    if len(path) < 3:
        return path
    inner = np.median(np.stack([path[:-2], path[1:-1], path[2:]]), axis=0)
    return np.concatenate([inner[:1], inner, inner[-1:]])


def _jumps(centres: np.ndarray) -> bool:
    """Whether a step of centres ``[t 2]`` differs from the median of the four steps around it by more than is smooth.

    The limit grows with the clip's own pace: with few frames, a circling object turns far between two of them.
    """
    steps = np.diff(centres, axis=0)
    if len(steps) < 3:
        return False
    limit = max(JUMP, 1.3 * float(np.median(np.linalg.norm(steps, axis=1))))
    wide = np.pad(steps, ((2, 2), (0, 0)), constant_values=np.nan)
    around = np.stack([wide[i : i + len(steps)] for i in (0, 1, 3, 4)])  # [4 neighbours, steps, 2]
    surprise = np.linalg.norm(steps - np.nanmedian(around, axis=0), axis=1)
    return bool((surprise > limit).any())


# ---- reading against truth ----


def fulfilment(reading: Reading, truth: dict[str, Any]) -> dict[str, bool]:
    """Which facts of ``world.Scene.truth()`` a reading fulfils.

    Each told object is paired with at most one found object, so that as many colours as possible agree, then as many
    shapes, motions and sizes as possible. Then, over the told objects:

    - ``colour``, ``shape``, ``size``, ``motion``: every told object has a partner with its own value. A told object
      without a partner fails all four. Colours therefore hold as a set: exchanging two objects' colours keeps
      ``colour`` true (the pairing follows the colours) and shows in ``shape`` or ``motion`` where the objects differ
      there, in ``binding`` always.
    - ``count``: as many objects found as told; an extra object shows here and in ``binding`` only.
    - ``permanence``: nothing vanished, nothing jumped, and at least as many objects found as told (nothing at all is
      not permanent).
    - ``background``: its name.
    - ``binding``, for two told objects only: ``count``, ``colour``, ``shape`` and ``motion`` under that one pairing,
      and the told relation holds between the partners where both are first seen.
    """
    told = truth["objects"]
    partners = _pair(told, reading.objects)
    right = {k: all(_agrees(o, f, k) for o, f in zip(told, partners, strict=True)) for k in _ATTRIBUTES}
    right["background"] = reading.background == truth["background"]
    right["count"] = len(reading.objects) == len(told)
    right["permanence"] = not (reading.vanished or reading.jumped or len(reading.objects) < len(told))
    if len(told) == 2:
        bound = right["count"] and right["colour"] and right["shape"] and right["motion"]
        right["binding"] = bound and _relation(partners[0], partners[1]) == truth["relation"]
    return right


_ATTRIBUTES = ("colour", "shape", "motion", "size")


def _agrees(told: dict[str, str], found: Found | None, attribute: str) -> bool:
    return found is not None and getattr(found, attribute) == told[attribute]


def _pair(told: list[dict[str, str]], found: tuple[Found, ...]) -> tuple[Found | None, ...]:
    """A partner or None for each told object; the most colours agree, then the most other attributes, then by area."""
    choices: list[Found | None] = [*found[:6], *[None] * len(told)]

    def score(partners: tuple[Found | None, ...]) -> tuple[int, int]:
        pairs = list(zip(told, partners, strict=True))
        colours = sum(_agrees(o, f, "colour") for o, f in pairs)
        return colours, sum(_agrees(o, f, k) for o, f in pairs for k in _ATTRIBUTES)

    return max(permutations(choices, len(told)), key=score)


def _relation(first: Found | None, second: Found | None) -> str | None:
    """Where the first object is to the second, by the longer side of the offset, at the first frame that shows both."""
    if first is None or second is None:
        return None
    offsets = first.track - second.track
    seen = offsets[~np.isnan(offsets[:, 0])]
    if not len(seen):
        return None
    dx, dy = seen[0]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
