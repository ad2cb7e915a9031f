"""Which samples look alike: a 64-bit difference hash to find candidates, small frames to be sure. It reads no files."""

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 64  # pixels of the square frames that signatures are made of
_CELLS = 8
SIGNATURE = np.dtype([("hash", "<u8"), ("small", "u1", (3, _CELLS, _CELLS, 3))])
"""Of one image or clip: the hash of its middle frame, and its first, middle and last frame as 8 x 8 cells of RGB."""

NEAR_BITS = 5  # of the hash that may differ
NEAR_LEVELS = 20  # by which any cell of the small frames may differ, of 255
_STEP = 3  # levels that make a gradient: less is noise, and would flip the bits of flat areas
_BANDS = np.linspace(0, 64, NEAR_BITS + 2).astype(int)  # one more than bits may differ: one band of two is equal
_AT_ONCE = 1 << 20  # pairs of hashes
_ROWS = 4096  # pairs of small frames at once
_FEW = 256  # places that are compared each with each
_SHRINKS = 0.9  # a part that is halved must at least become this much smaller


def signature(frames: np.ndarray) -> np.ndarray:
    """uint8 ``[t 64 64 3]``, t of 1 or 3 → one `SIGNATURE`. The hash is Krawetz's dHash with a threshold."""
    grey = Image.fromarray(frames[len(frames) // 2]).convert("L").resize((_CELLS + 1, _CELLS), Image.Resampling.BOX)
    rising = np.diff(np.asarray(grey).astype(np.int16), axis=1) >= _STEP
    found = np.zeros((), SIGNATURE)
    found["hash"] = np.packbits(rising).view("<u8")[0]
    cell = SIDE // _CELLS
    cells = frames.reshape(-1, _CELLS, cell, _CELLS, cell, 3).mean((2, 4))
    found["small"] = np.round(cells)
    return found


def near_pairs(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `SIGNATURE` ``[n]`` look alike.

    Two hashes that differ in at most `NEAR_BITS` bits agree in one of one more bands, so only samples that share a band
    are compared; where many do, as plain pictures do, only those whose small frames are near.

    Returns:
        For each place the first that has an equal signature, int64 ``[n]``; and of these firsts the pairs i < j that
        look alike, int64 ``[pairs 2]``, sorted.
    """
    rows = np.ascontiguousarray(signatures).view(f"V{SIGNATURE.itemsize}")
    _, firsts, inverse = np.unique(rows, return_index=True, return_inverse=True)
    found = [np.empty((0, 2), np.int64)]
    hashes = signatures["hash"]
    for low, high in itertools.pairwise(_BANDS.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for bucket in _buckets(np.sort(firsts), band):
            found += [_compared(signatures, part) for part in _near_parts(signatures["small"], bucket)]
    return firsts[inverse.reshape(-1)], np.unique(np.concatenate(found), axis=0)


def _buckets(places: np.ndarray, band: np.ndarray) -> Iterator[np.ndarray]:
    """Those of the places that have equal values, where there are several; each rising."""
    order = places[np.argsort(band[places], kind="stable")]
    edges = np.flatnonzero(np.diff(band[order])) + 1
    return (bucket for bucket in np.split(order, edges) if len(bucket) > 1)


def _near_parts(small: np.ndarray, places: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of the places, such that any two that look alike are together in one: halves of the cell that varies most,
    which overlap by the levels that it may differ."""
    if len(places) <= _FEW:
        yield places
        return
    cells = small[places].reshape(len(places), -1)
    widest = int(np.argmax(cells.max(0).astype(int) - cells.min(0)))
    values = cells[:, widest].astype(int)
    middle = int(np.median(values))
    halves = places[values < middle + NEAR_LEVELS], places[values >= middle]
    if max(map(len, halves)) > _SHRINKS * len(places):  # they are near indeed
        yield places
    else:
        for half in halves:
            yield from _near_parts(small, half)


def _compared(signatures: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The pairs of the places, rising, that look alike; each with each."""
    found, hashes = [np.empty((0, 2), np.int64)], signatures["hash"]
    step = max(_AT_ONCE // len(places), 1)
    for start in range(0, len(places), step):
        rows = places[start : start + step]
        close = np.bitwise_count(hashes[rows, None] ^ hashes[None, places]) <= NEAR_BITS
        i, j = np.nonzero(close & (rows[:, None] < places[None, :]))
        found.append(_alike(signatures["small"], np.stack([rows[i], places[j]], axis=1)))
    return np.concatenate(found)


def _alike(small: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Those of the pairs whose small frames agree: in a few cells first, which most do not, then in all."""
    for cells in (small[:, 1:2, ::4, ::4], small):
        kept = [np.empty((0, 2), np.int64)]
        for start in range(0, len(pairs), _ROWS):
            part = pairs[start : start + _ROWS]
            apart = np.abs(cells[part[:, 0]].astype(np.int16) - cells[part[:, 1]].astype(np.int16))
            kept.append(part[apart.max(axis=(1, 2, 3, 4)) <= NEAR_LEVELS])
        pairs = np.concatenate(kept)
    return pairs


def groups(pairs: np.ndarray) -> list[list[int]]:
    """Pairs → sets of places that hang together, each sorted."""
    roots: dict[int, int] = {}

    def root(i: int) -> int:
        while (above := roots.setdefault(i, i)) != i:
            roots[i] = i = roots.setdefault(above, above)
        return i

    for i, j in pairs.tolist():
        first, second = sorted((root(i), root(j)))
        roots[second] = first
    found: dict[int, list[int]] = {}
    for i in sorted(roots):
        found.setdefault(root(i), []).append(i)
    return list(found.values())
