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


def near_pairs(signatures: np.ndarray) -> np.ndarray:
    """int64 ``[pairs 2]``: the places i < j of `SIGNATURE` ``[n]`` that look alike, sorted.

    Two hashes that differ in at most `NEAR_BITS` bits agree in one of one more bands, so only samples that share a band
    are compared.
    """
    found = [np.empty((0, 2), np.int64)]
    hashes = signatures["hash"]
    for low, high in itertools.pairwise(_BANDS.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for bucket in _buckets(band):
            step = max(_AT_ONCE // len(bucket), 1)
            for start in range(0, len(bucket), step):
                rows = bucket[start : start + step]
                close = np.bitwise_count(hashes[rows, None] ^ hashes[None, bucket]) <= NEAR_BITS
                i, j = np.nonzero(close & (rows[:, None] < bucket[None, :]))
                found.append(_alike(signatures["small"], np.stack([rows[i], bucket[j]], axis=1)))
    return np.unique(np.concatenate(found), axis=0)


def _buckets(band: np.ndarray) -> Iterator[np.ndarray]:
    """Places of equal values, where there are several."""
    order = np.argsort(band, kind="stable")
    edges = np.flatnonzero(np.diff(band[order])) + 1
    return (bucket for bucket in np.split(order, edges) if len(bucket) > 1)


def _alike(small: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Those of the pairs whose small frames agree."""
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), _ROWS):
        part = pairs[start : start + _ROWS]
        apart = np.abs(small[part[:, 0]].astype(np.int16) - small[part[:, 1]].astype(np.int16))
        kept.append(part[apart.max(axis=(1, 2, 3, 4)) <= NEAR_LEVELS])
    return np.concatenate(kept)


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
