"""An invisible watermark in pixels: 32 bits and their check, spread over the blue-difference channel of every frame.

Spread spectrum (Cox et al. 1997) in Cb, where H.264 and the eye spend least: a key draws a tile of ± chips that is
repeated over the frame, the same in every frame. A quarter of the chips is known to the reader (the pilot) and finds
scale, mirroring and offset; the others carry the bits, five to a word of sixteen chips (biorthogonal code). Numpy
alone; files and credentials are `provenance.py`.

Whoever knows the key can read the mark, and could forge or remove it: with the default key it is a label, with a key of
your own it is evidence as well.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from mmtrain.errors import UserError

KEY = "mmtrain"  # known to all
AMPLITUDE = 2.2  # levels of Cb, ±
CHIP = 4  # pixels, times one for every 256 of the frame's shorter side
TILE = 64  # pixels; the smallest frame that can carry the mark
PAYLOAD_BITS, CHECK_BITS = 32, 28
FOUND = 4.0
"""Standard deviations of the pilot's correlation above which bits are read at all; their check must hold besides."""

FINE = 256  # pixels of the shorter side for which chips are one size larger
SCALES = (1.0, 1 / 2, 2 / 3, 4 / 3, 2.0, 1 / 3, 1 / 4, 4 / 9, 3 / 4)
"""Sizes tried over the size that came: chips of 4, 8, 12 and 16 pixels, as they are, at three quarters and at half."""

_CHIPS = TILE // CHIP
_PILOTS = _CHIPS**2 // 4
_WORD, _WORD_BITS = 16, 5  # chips and bits of a code word
_WORDS = (PAYLOAD_BITS + CHECK_BITS) // _WORD_BITS
_PEAKS = 3  # offsets tried for each scale
_LIMIT = 3.0  # levels beyond which a residual is content and is cut
_WINDOW = 3 * CHIP  # pixels of the mean that is taken away
_FRAMES = 16  # frames that are read, evenly through a clip


@dataclass(frozen=True)
class Mark:
    """What was read: the payload, how far the pilot stands out, and under which scale and mirroring."""

    payload: int
    z: float
    scale: float
    mirrored: bool


def mark(frames: np.ndarray, payload: int, *, key: str = KEY, amplitude: float = AMPLITUDE) -> np.ndarray:
    """Frames uint8 ``[t h w c]`` with a payload of 32 bits in them.

    Raises:
        UserError: frames smaller than a tile.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < TILE:
        came = f"frames of {width} x {height} pixels"
        raise UserError("watermark", came, f"at least {TILE} x {TILE}", "make larger ones, or leave the mark out")
    tile = _tile(key, payload)
    times = max(1, min(height, width) // FINE)
    side = TILE * times
    tile = tile.repeat(times, 0).repeat(times, 1)
    field = np.tile(tile, (-(-height // side), -(-width // side)))[:height, :width] * amplitude
    # BT.709: R and G, B as Cb moves while Y and Cr stay
    shift = field[..., None] * np.array([0.0, -0.1873, 1.8556])
    return np.clip(np.round(frames + shift), 0, 255).astype(np.uint8)


def read(frames: np.ndarray, *, key: str = KEY) -> Mark | None:
    """The mark of frames uint8 ``[t h w c]``, or None: scale, mirroring and crop are searched for."""
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int))]
    blue = chosen.astype(np.float32) @ np.array([-0.1146, -0.3854, 0.5], np.float32)
    for scale in SCALES:
        planes = _residuals(blue, scale)
        if planes is None:
            continue
        for mirrored in (False, True):
            folded = np.stack([_folded(plane[:, ::-1] if mirrored else plane) for plane in planes])
            for payload, z in _candidates(folded, key):
                return Mark(payload, z, scale, mirrored)
    return None


def _residuals(blue: np.ndarray, scale: float) -> np.ndarray | None:
    """What remains of Cb ``[t h w]`` at a size without its local mean, cut; None where that is no tile."""
    height, width = (round(side * scale) for side in blue.shape[1:])
    if min(height, width) < TILE:
        return None
    if scale != 1:
        how = ((width, height), Image.Resampling.BICUBIC)
        blue = np.stack([np.asarray(Image.fromarray(plane).resize(*how)) for plane in blue])
    return np.stack([np.clip(plane - _mean(plane), -_LIMIT, _LIMIT) for plane in blue])


def _mean(plane: np.ndarray) -> np.ndarray:
    """The mean of a window around each pixel of ``[h w]``."""
    for axis in (0, 1):
        before = _WINDOW // 2
        pad = [(0, 0), (0, 0)]
        pad[axis] = (before + 1, _WINDOW - 1 - before)
        sums = np.cumsum(np.pad(plane, pad, mode="reflect"), axis=axis, dtype=np.float64)
        ends = np.take(sums, range(_WINDOW, sums.shape[axis]), axis=axis)
        plane = (ends - np.take(sums, range(sums.shape[axis] - _WINDOW), axis=axis)) / _WINDOW
    return plane


def _folded(plane: np.ndarray) -> np.ndarray:
    """The mean over all tiles of ``[h w]``, ``[tile tile]``; a part at the edge counts as far as it goes."""
    pad = [(0, -side % TILE) for side in plane.shape]
    sums, counts = (
        np.pad(a, pad).reshape(-(-plane.shape[0] // TILE), TILE, -1, TILE).sum((0, 2))
        for a in (plane, np.ones_like(plane))
    )
    return sums / counts


def _candidates(folded: np.ndarray, key: str) -> Iterator[tuple[int, float]]:
    """Payloads whose check holds, where the pilot stands out of folded residuals ``[t tile tile]``.

    H.264 moves the mark along with what it moves, so frames are first taken together as they are, then each from its
    own strongest offset.
    """
    pilot = _spread(_layout(key)[0], key)
    for together in (folded.mean(0), _aligned(folded, pilot)):
        z = _correlation(together, pilot)
        for place in np.argsort(z, axis=None)[::-1][:_PEAKS]:
            top, left = np.unravel_index(place, z.shape)
            if z[top, left] < FOUND:
                break
            value = _decoded(np.roll(together, (-top, -left), (0, 1)), key)
            payload, check = value >> CHECK_BITS, value & (1 << CHECK_BITS) - 1
            if _check(payload) == check:
                yield payload, float(z[top, left])


def _correlation(folded: np.ndarray, pilot: np.ndarray) -> np.ndarray:
    """The pilot's correlation at each offset ``[tile tile]``, in standard deviations over all offsets."""
    found = np.fft.irfft2(np.fft.rfft2(folded) * np.conj(np.fft.rfft2(pilot)), s=folded.shape)
    return found / max(found.std(), 1e-12)


def _aligned(folded: np.ndarray, pilot: np.ndarray) -> np.ndarray:
    """The mean of frames rolled so that each one's strongest offset is the first, weighted by how far it stands out."""
    total = np.zeros_like(pilot)
    for frame in folded:
        z = _correlation(frame, pilot)
        top, left = np.unravel_index(int(z.argmax()), z.shape)
        total += np.roll(frame, (-top, -left), (0, 1)) * max(float(z.max()) - 4, 0) ** 2
    return total


def _tile(key: str, payload: int) -> np.ndarray:
    """The pattern of ±1 ``[tile tile]`` that carries a payload."""
    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise UserError("watermark", f"the payload {payload}", f"{PAYLOAD_BITS} bits", "choose a smaller number")
    value = payload << CHECK_BITS | _check(payload)
    words = [value >> _WORD_BITS * i & (1 << _WORD_BITS) - 1 for i in reversed(range(_WORDS))]
    chips, places = _layout(key)[0].copy(), _layout(key)[1]
    for word, place in zip(words, places, strict=True):
        chips[place] = _HADAMARD[word >> 1] * (1 if word & 1 else -1)
    return _spread(chips, key)


def _decoded(tile: np.ndarray, key: str) -> int:
    """The likeliest value of a tile ``[tile tile]``: a word is the row of the Hadamard matrix nearest to its chips."""
    _, places, signs = _layout(key)
    chips = tile.reshape(_CHIPS, CHIP, _CHIPS, CHIP).sum((1, 3)).ravel() * signs
    value = 0
    for found in chips[places] @ _HADAMARD.T:
        row = int(np.abs(found).argmax())
        value = value << _WORD_BITS | row << 1 | int(found[row] > 0)
    return value


@lru_cache(maxsize=8)
def _layout(key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a key: the pilot's chips (1 there, 0 elsewhere) ``[chips]``, the places of each word's chips ``[words word]``,
    and the sign by which every chip is spread."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    rng = np.random.Generator(np.random.Philox(key=seed))
    order = np.argsort(rng.random(_CHIPS**2), kind="stable")
    signs = np.where(rng.random(_CHIPS**2) < 0.5, -1.0, 1.0)
    pilot = np.zeros(_CHIPS**2)
    pilot[order[:_PILOTS]] = 1
    return pilot, order[_PILOTS:].reshape(_WORDS, _WORD), signs


def _spread(chips: np.ndarray, key: str) -> np.ndarray:
    """Chips ``[chips]`` as pixels ``[tile tile]``, with their signs."""
    return (chips * _layout(key)[2]).reshape(_CHIPS, _CHIPS).repeat(CHIP, 0).repeat(CHIP, 1)


def _hadamard(side: int) -> np.ndarray:
    """Sylvester's matrix of ±1, ``[side side]``; its rows and their negatives are the Reed-Muller code RM(1, m)."""
    if side == 1:
        return np.ones((1, 1))
    half = _hadamard(side // 2)
    return np.block([[half, half], [half, -half]])


_HADAMARD = _hadamard(_WORD)


def _check(payload: int) -> int:
    return zlib.crc32(payload.to_bytes(4, "big")) >> 32 - CHECK_BITS
