"""Reads a clip of the world back from its pixels, and says which of a caption's facts it fulfils.

Holds: blobs to tracks, tracks to shape, colour, size, motion and permanence, and the comparison with a truth. Pixels
to blobs is `evaluate/blobs.py`. Holds no model, and no caption or truth while reading: `read` sees frames alone, so
that it judges a generated clip and a drawn one alike. Clips are assumed to show plain sprites on a plain background,
as `data/world.py` draws them; the thresholds leave room for the blur, colour error and ringing of a small diffusion
model and its codec.

Calibrated on 16 frames; below 8, circling is mistaken for jumping.
Lengths are pixels of a 64-pixel frame; frames of another side are measured in the same unit.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from mmtrain.data import world
from mmtrain.data.brand import OUTLINE_WIDTH, Brand, undressed
from mmtrain.errors import UserError
from mmtrain.evaluate.blobs import DISTINCT, Blob, blobs

_NAMES = tuple(world.COLOURS)
_PALETTE = np.array(list(world.COLOURS.values()), np.float32)
_GROUNDS = np.array(list(world.BACKGROUNDS.values()), np.float32)

BACKGROUND_LIMIT = 50.0  # RGB distance; the two closest backgrounds are 95 apart
SHAPE_LIMIT = 0.78  # overlap (soft intersection over union) below which a blob is no shape at all
MOVED = 4.0  # pixels; the world's shortest move is 12.6, so a third of it
GREW = 1.45  # area, last over first; the world's least growth gives 2.0 between the frames compared
JUMP = 5.0  # pixels by which a step may differ from its neighbours; a circling sprite's differ by 2.1
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
    neighbouring steps do not explain. Objects are in order of falling area, summed over the frames.
    """

    background: str | None
    objects: tuple[Found, ...]
    vanished: bool
    jumped: bool


def read(frames: np.ndarray, brand: Brand | None = None) -> Reading:
    """Reads frames uint8 ``[t h w c]`` (RGB); raises UserError for any other layout.

    Args:
        brand: in whose style they may be. Stripes and logo are then no objects, an outline is part of its sprite, and
            the brand's shades are colours too; two sprites that touch are read as one.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        came = f"came {frames.dtype} {list(frames.shape)}"
        raise UserError("judge", came, "wanted uint8 [t h w 3], t at least 1", "pass decoded RGB frames")
    scale = min(frames.shape[1:3]) / world.SIDE
    frames = frames if brand is None else undressed(frames)
    ground = np.median(frames[:, ::2, ::2].reshape(len(frames), -1, 3), axis=1).astype(np.float32)
    tracks = _link(blobs(frames, ground, scale, 0.0 if brand is None else OUTLINE_WIDTH * scale), scale)
    lasting = [t for t in tracks if len(t) >= max(2, len(frames) / 4) or len(frames) == 1]
    lasting.sort(key=lambda t: -sum(b.area for b in t))
    shades = _PALETTE if brand is None else np.concatenate([_PALETTE, list(brand.palette().values())])
    objects = tuple(_describe(t, len(frames), len(lasting), scale, shades) for t in lasting)
    return Reading(
        background=_nearest(np.median(ground, axis=0), tuple(world.BACKGROUNDS), _GROUNDS, BACKGROUND_LIMIT),
        objects=objects,
        vanished=any(1 < len(t) < len(frames) for t in tracks),
        jumped=any(_jumps(f.track[~np.isnan(f.track[:, 0])]) for f in objects),
    )


def _nearest(rgb: np.ndarray, names: tuple[str, ...], palette: np.ndarray, limit: float) -> str | None:
    distance = np.linalg.norm(palette - rgb, axis=1)
    return names[int(distance.argmin())] if distance.min() <= limit else None


# ---- blobs to tracks ----


def _link(found: Iterable[Blob], scale: float) -> list[list[Blob]]:
    """Blobs of the same object through the frames: the nearest of its colour, or one within six pixels of any colour.

    A blob of the same colour is taken however far it is: that is a jump, and `_jumps` says so.
    """
    tracks: list[list[Blob]] = []
    by_frame: dict[int, list[Blob]] = {}
    for blob in found:
        by_frame.setdefault(blob.frame, []).append(blob)
    for _, present in sorted(by_frame.items()):
        pairs = []
        for i, track in enumerate(tracks):
            for j, blob in enumerate(present):
                distance = float(np.hypot(track[-1].x - blob.x, track[-1].y - blob.y)) / scale
                alike = float(np.linalg.norm(track[-1].rgb - blob.rgb)) < DISTINCT
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


def _describe(track: list[Blob], num_frames: int, num_objects: int, scale: float, shades: np.ndarray) -> Found:
    named = _NAMES * (len(shades) // len(_NAMES))
    names = Counter(_nearest(b.rgb, named, shades, DISTINCT) for b in track)
    colour, votes = names.most_common(1)[0]
    shape, overlap = _shape(track)
    halves = [_half(shape, b) for b in track]
    centres = np.full((num_frames, 2), np.nan)
    for blob, half in zip(track, halves, strict=True):
        centres[blob.frame] = blob.x, blob.y - _sunk(shape, half, blob.rim)
    centres /= scale
    border = float(np.mean(list(world.SIZES.values()))) * world.SHRINK[min(max(num_objects, 1), 2)]
    return Found(
        shape=shape if overlap >= SHAPE_LIMIT else None,
        colour=colour if votes >= 0.75 * len(track) else None,
        size="small" if float(np.median(halves[:3])) / scale < border else "large",
        motion=_motion(centres[~np.isnan(centres[:, 0])], np.array([b.area for b in track])),
        track=centres,
        overlap=overlap,
    )


# By shape of `world.coverage`: how its area grows with the squared half extent h, with h times the outline's width, and
# with the squared width; and how far its centroid lies below its centre, in h and in widths of the outline.
_BAR = 1 / 2.8
_INNER = 0.9 * 1.8 / (0.9 + np.hypot(0.9, 1.8))  # radius of the circle in the triangle, in h
_AREA: dict[str, tuple[float, float, float]] = {
    "circle": (np.pi, 2 * np.pi, np.pi),
    "square": (1.8**2, 4 * 1.8, 4.0),
    "triangle": (1.8**2 / 2, 1.8**2 / _INNER, 1.8**2 / 2 / _INNER**2),
    "cross": (8 * _BAR - 4 * _BAR**2, 8.0, 4.0),
}
_SINK = dict.fromkeys(world.SHAPES, (0.0, 0.0)) | {"triangle": (0.85 - 1.8 / 3, 1 - 1.8 / 3 / _INNER)}


def _half(shape: str, blob: Blob) -> float:
    """Half extent that gives a shape, with the blob's outline around it, the blob's area."""
    square, line, rest = _AREA[shape]
    line, rest = line * blob.rim, rest * blob.rim**2 - blob.area
    return float(max(0.0, np.sqrt(max(0.0, line**2 - 4 * square * rest)) - line)) / (2 * square)


def _sunk(shape: str, half: float, rim: float) -> float:
    own, lower = _SINK[shape]
    return own * half + lower * rim


def _shape(track: list[Blob]) -> tuple[str, float]:
    """The shape whose drawing overlaps the blob best, and that overlap: the median over frames spread on the track."""
    chosen = [track[i] for i in np.unique(np.linspace(0, len(track) - 1, _SHAPE_FRAMES).round().astype(int))]
    overlaps = {shape: float(np.median([_overlap(shape, blob) for blob in chosen])) for shape in world.SHAPES}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best, overlaps[best]


def _overlap(shape: str, blob: Blob) -> float:
    """Soft intersection over union of the blob with the shape of the same area and centroid, blurred as the blob is.

    Blur costs a sharp drawing up to a third of its overlap, the more the thinner the shape; so the drawing is softened
    step by step while that helps.
    """
    half = _half(shape, blob)
    (top, left), (h, w) = blob.corner, blob.cover.shape
    dy = (np.arange(h) + top + 0.5 - blob.y + _sunk(shape, half, blob.rim))[:, None]
    dx = (np.arange(w) + left + 0.5 - blob.x)[None]
    drawn, best = world.coverage(shape, dx, dy, half, blob.rim), 0.0
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
    back, and its path encloses an area. One displaced frame is no motion, so it is repaired first.
    """
    path = _repaired(centres)
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


def _repaired(path: np.ndarray) -> np.ndarray:
    """Centres ``[t 2]`` with any single displaced one replaced by the median of its three (at the ends, of the nearest
    three), the others as they are."""
    if len(path) < 3:
        return path
    median = np.median(np.stack([path[:-2], path[1:-1], path[2:]]), axis=0)
    median = np.concatenate([median[:1], median, median[-1:]])
    displaced = np.linalg.norm(path - median, axis=1, keepdims=True) > _smooth_limit(path)
    return np.where(displaced, median, path)


def _jumps(centres: np.ndarray) -> bool:
    """Whether a step of centres ``[t 2]`` differs from the median of the four around it by more than is smooth."""
    steps = np.diff(centres, axis=0)
    if len(steps) < 3:
        return False
    wide = np.pad(steps, ((2, 2), (0, 0)), constant_values=np.nan)
    around = np.stack([wide[i : i + len(steps)] for i in (0, 1, 3, 4)])  # [4 neighbours, steps, 2]
    surprise = np.linalg.norm(steps - np.nanmedian(around, axis=0), axis=1)
    return bool((surprise > _smooth_limit(centres)).any())


def _smooth_limit(centres: np.ndarray) -> float:
    """Pixels beyond which a change of step is a jump: more where few frames make a circling object turn far in one."""
    return max(JUMP, 1.3 * float(np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1))))


# ---- reading against truth ----


def fulfilment(reading: Reading, truth: dict[str, Any]) -> dict[str, bool]:
    """Which facts of ``world.Scene.truth()`` a reading fulfils.

    Each told object is paired with at most one found object, so that as many colours as possible agree, then as many
    shapes, motions and sizes as possible. Only the largest found objects are eligible, one more than are told: in a
    clip full of patches, some patch has any attribute by chance. Then, over the told objects:

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
    choices: list[Found | None] = [*found[: len(told) + 1], *[None] * len(told)]

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
