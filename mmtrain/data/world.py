"""A world whose truth is known: clips of moving sprites, drawn from a seed, with captions and the facts behind them.

Scenes, pixels and words only; writing them into shards is `data/shards.py`, reading facts back from pixels is
`evaluate/judge.py`. Nothing here imports torch, so that drawing runs in plain worker processes.

The split holds out combinations: one in five (colour, shape, motion) triples never occurs in training, while each
colour, shape and motion does, and so does each pair of them.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmtrain.errors import UserError

SIDE = 64  # pixels
NUM_FRAMES = 16

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 215, 40),
    "purple": (165, 60, 205),
    "cyan": (45, 205, 220),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (14, 14, 16),
    "grey": (128, 128, 128),
    "white": (242, 242, 240),
    "brown": (92, 62, 40),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, float] = {"small": 8.5, "large": 13.0}  # half extent in pixels of an object alone
_D = 0.75
DIRECTIONS: dict[str, tuple[float, float]] = {  # per pixel of travel, y grows downwards
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-left": (-_D, -_D),
    "up-right": (_D, -_D),
    "down-left": (-_D, _D),
    "down-right": (_D, _D),
}
MOTIONS = (*DIRECTIONS, "circling", "growing", "still")
RELATIONS = ("above", "below", "left of", "right of")

SHRINK = {1: 1.0, 2: 0.75}  # of the half extent, by number of objects
_TRAVEL = {1: 20.0, 2: 14.0}  # pixels covered by a moving object at pace 1, by number of objects
_ORBIT = {1: 8.0, 2: 6.0}  # radius in pixels of a circling object's path at pace 1
_GROWTH = {1: 1.8, 2: 1.5}  # last size over first
_MARGIN = 1.0
SLOWEST = {1: 0.45, 2: 0.6}  # pace below which the judge takes circling for standing still, by number of objects


@dataclass(frozen=True)
class Sprite:
    """One object: what it is, where its centre starts (pixels), how far it goes."""

    shape: str
    colour: str
    size: str
    motion: str
    x: float
    y: float
    half: float
    travel: float
    orbit: float
    growth: float

    def at(self, phase: float) -> tuple[float, float, float]:
        """Centre x, y and half extent in pixels at a phase in [0, 1]."""
        if self.motion in DIRECTIONS:
            dx, dy = DIRECTIONS[self.motion]
            return self.x + dx * self.travel * phase, self.y + dy * self.travel * phase, self.half
        if self.motion == "circling":  # clockwise on the screen, starting at the top of its path
            angle = 2 * np.pi * phase
            return self.x + self.orbit * np.sin(angle), self.y + self.orbit * (1 - np.cos(angle)), self.half
        if self.motion == "growing":
            return self.x, self.y, self.half * (1 + (self.growth - 1) * phase)
        return self.x, self.y, self.half


@dataclass(frozen=True)
class Scene:
    background: str
    sprites: tuple[Sprite, ...]
    relation: str | None = None

    def truth(self) -> dict[str, Any]:
        """The facts that a caption may tell and a judge must find, JSON-ready."""
        facts = [
            {k: v for k, v in asdict(s).items() if k in ("shape", "colour", "size", "motion")} for s in self.sprites
        ]
        return {"background": self.background, "objects": facts, "relation": self.relation}


def readable(pace: float, two_objects: float) -> None:
    """Refuses a pace at which objects leave the frame or the judge does not see them move.

    Two objects go a shorter way, so that they may be slowed down less.
    """
    slowest = SLOWEST[2 if two_objects else 1]
    if not slowest <= pace <= 1:
        wanted = f"{slowest} to 1: slower, nobody can tell circling from standing still; faster, frames are too small"
        less = f", or --two-objects 0, which allows {SLOWEST[1]}" if SLOWEST[1] <= pace < slowest else ""
        raise UserError("pace", f"{pace:g}", wanted, f"choose one between{less}")


def held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether this combination is kept from training: a Latin pattern that leaves every pair of them in training."""
    place = list(COLOURS).index(colour) + 2 * SHAPES.index(shape) + 3 * MOTIONS.index(motion)
    return place % 5 == 0


def rng_of(*parts: int | str) -> np.random.Generator:
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def scene(
    seed: int,
    split: str,
    index: int,
    two_objects: float = 0.3,
    pace: float = 1.0,
    motions: Mapping[str, float] | None = None,
) -> Scene:
    """The scene at a place of a split (``train`` or ``heldout``): a pure function of its arguments.

    A training scene holds no held-out combination; a held-out scene holds at least one. ``pace`` scales the ways that
    objects go, straight or round. ``motions`` are the shares of some; the others share the rest evenly.
    """
    drawn_with = None if not motions else _probabilities(motions)
    rng = rng_of("world", seed, split, index)
    wanted = 2 if rng.random() < two_objects else 1
    while True:
        candidate = _draw(rng, wanted, pace, drawn_with)
        if candidate is None:
            continue
        kept = [held_out(s.colour, s.shape, s.motion) for s in candidate.sprites]
        if (split == "train" and not any(kept)) or (split == "heldout" and any(kept)):
            return candidate


def shares_of_motions(shares: Mapping[str, float]) -> None:
    """Refuses shares of motions that the world does not know, or that leave less than nothing for the others."""
    for name, share in shares.items():
        if name not in MOTIONS:
            raise UserError("motions", repr(name), f"one of {', '.join(MOTIONS)}", "correct the name")
        if not 0 <= share <= 1:
            raise UserError(f"motions {name}", f"{share:g}", "a share from 0 to 1", "correct it")
    total = sum(shares.values())
    if total > 1 + 1e-9 or (len(shares) == len(MOTIONS) and total < 1 - 1e-9):
        wanted = "at most 1, and all of it where every motion is named"
        raise UserError("motions", f"{total:g} in all", wanted, "correct the shares")


def _probabilities(shares: Mapping[str, float]) -> list[float]:
    rest = max(0.0, 1 - sum(shares.values())) / max(1, len(MOTIONS) - len(shares))
    chances = [shares.get(name, rest) for name in MOTIONS]
    return [chance / sum(chances) for chance in chances]


def _draw(rng: np.random.Generator, count: int, pace: float, motions: list[float] | None) -> Scene | None:
    background = str(rng.choice(list(BACKGROUNDS)))
    colours = rng.choice(list(COLOURS), size=count, replace=False)
    sprites = tuple(_draw_sprite(rng, str(colour), count, pace, motions) for colour in colours)
    if count == 1:
        return Scene(background, sprites)
    first, second = sprites
    dx, dy = first.x - second.x, first.y - second.y
    if abs(abs(dx) - abs(dy)) < 6 or _overlap(first, second):
        return None
    relation = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
    return Scene(background, sprites, relation)


def _draw_sprite(rng: np.random.Generator, colour: str, count: int, pace: float, motions: list[float] | None) -> Sprite:
    shape, size, motion = str(rng.choice(SHAPES)), str(rng.choice(list(SIZES))), str(rng.choice(MOTIONS, p=motions))
    half = SIZES[size] * SHRINK[count] * rng.uniform(0.94, 1.06)
    travel, orbit = pace * _TRAVEL[count] * rng.uniform(0.9, 1.1), pace * _ORBIT[count]
    growth = _GROWTH[count]
    still = Sprite(shape, colour, size, motion, 0.0, 0.0, half, travel, orbit, growth)
    path = np.array([still.at(p) for p in np.linspace(0, 1, NUM_FRAMES)])
    reach = path[:, 2] + _MARGIN
    low = [float((reach - path[:, axis]).max()) for axis in (0, 1)]
    high = [float((SIDE - reach - path[:, axis]).min()) for axis in (0, 1)]
    x, y = (float(rng.uniform(a, b)) for a, b in zip(low, high, strict=True))
    return Sprite(shape, colour, size, motion, x, y, half, travel, orbit, growth)


def _overlap(first: Sprite, second: Sprite, gap: float = 2.0) -> bool:
    for phase in np.linspace(0, 1, NUM_FRAMES):
        (ax, ay, ar), (bx, by, br) = first.at(phase), second.at(phase)
        if abs(ax - bx) < ar + br + gap and abs(ay - by) < ar + br + gap:
            return True
    return False


def render(scene: Scene, num_frames: int = NUM_FRAMES, side: int = SIDE) -> np.ndarray:
    """Frames uint8 ``[t h w c]``, anti-aliased; positions scale with ``side`` (drawn for 64 pixels)."""
    scale = side / SIDE
    ys, xs = np.mgrid[0:side, 0:side] + 0.5
    frames = np.empty((num_frames, side, side, 3), np.uint8)
    for t in range(num_frames):
        canvas = np.broadcast_to(np.array(BACKGROUNDS[scene.background], np.float64), (side, side, 3)).copy()
        for sprite in scene.sprites:
            x, y, half = (v * scale for v in sprite.at(t / max(num_frames - 1, 1)))
            cover = coverage(sprite.shape, xs - x, ys - y, half)[..., None]
            canvas += cover * (np.array(COLOURS[sprite.colour], np.float64) - canvas)
        frames[t] = np.round(canvas)
    return frames


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, half: float, grown: float = 0.0) -> np.ndarray:
    """Share of each pixel that the shape covers, from the signed distance to its edge ``grown`` pixels further out."""
    if shape == "circle":
        distance = np.hypot(dx, dy) - half
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - 0.9 * half
    elif shape == "triangle":  # upright, base below
        distance = np.maximum(dy - 0.85 * half, (2 * abs(dx) - dy - 0.95 * half) / np.sqrt(5))
    elif shape == "cross":
        bar = half / 2.8
        across, along = np.maximum(abs(dx) - half, abs(dy) - bar), np.maximum(abs(dy) - half, abs(dx) - bar)
        distance = np.minimum(across, along)
    else:
        raise ValueError(f"no such shape: {shape}")
    return np.clip(0.5 + grown - distance, 0.0, 1.0)


_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_STILL_WORDS = ("standing still", "not moving", "at rest")
_MOTION_WORDS: dict[str, tuple[str, ...]] = {
    **{d: (f"moving {d}", f"drifting {d}", f"sliding {d}") for d in ("left", "right", "up", "down")},
    **{d: (f"moving {d.replace('-', ' and ')}", f"drifting {d.replace('-', ' and ')}") for d in DIRECTIONS if "-" in d},
    "circling": ("circling", "going round in a circle", "moving in a circle"),
    "growing": ("growing", "getting bigger", "growing larger"),
}


def _words(sprite: Sprite, article: str, rng: np.random.Generator) -> str:
    size = f"{rng.choice(_SIZE_WORDS[sprite.size])} " if rng.random() < 0.7 else ""
    if sprite.motion == "still" and rng.random() < 0.5:
        return f"{article} {size}still {sprite.colour} {sprite.shape}"
    motion = rng.choice(_STILL_WORDS if sprite.motion == "still" else _MOTION_WORDS[sprite.motion])
    return f"{article} {size}{sprite.colour} {sprite.shape} {motion}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence about the scene, true in every word; wording varies, the motion is always told."""
    parts = [_words(sprite, "a", rng) for sprite in scene.sprites]
    if scene.relation is None:
        body = parts[0]
    else:
        joint = {"left of": "to the left of", "right of": "to the right of"}.get(scene.relation, scene.relation)
        body = f"{parts[0]} {joint} {parts[1]}"
    where = (f"on a {scene.background} background", f"on {scene.background}", f"over a {scene.background} background")
    if rng.random() < 0.2:
        return f"{scene.background} background, {body}"
    return f"{body} {rng.choice(where)}"


def renamed(captions: list[str], names: Mapping[str, str]) -> list[str]:
    """Captions in which words have other names.

    Raises:
        UserError: a word that is no colour, shape, size or background of the world.
    """
    for word in names:
        if word not in (known := [*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS]):
            raise UserError("rename", repr(word), f"one of {', '.join(known)}", "correct it")
    words = re.compile(r"(?<!in a )\b[a-z]+")  # in a circle: a way of moving, no shape
    return [words.sub(lambda found: names.get(found[0], found[0]), caption) for caption in captions]


def samples(
    seed: int,
    split: str,
    count: int,
    captions_each: int = 3,
    two_objects: float = 0.3,
    num_frames: int = NUM_FRAMES,
    pace: float = 1.0,
    motions: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, np.ndarray, list[str], dict[str, Any]]]:
    """Key, frames uint8 ``[t h w c]``, captions and truth of each of ``count`` scenes; clutter has no words."""
    for index in range(count):
        if split == "clutter":
            yield f"{split}-{index:06d}", clutter(seed, index), [], {}
            continue
        drawn = scene(seed, split, index, two_objects, pace, motions)
        rng = rng_of("caption", seed, split, index)
        words = [caption(drawn, rng) for _ in range(captions_each)]
        yield f"{split}-{index:06d}", render(drawn, num_frames), words, drawn.truth()


def clutter(seed: int, index: int) -> np.ndarray:
    """One frame uint8 ``[1 32 32 3]`` crowded with 1 to 8 sprites of any kind: what a codec learns pixels from, because
    a scene of one sprite is nearly all background, and a quarter of a frame costs a quarter of the time."""
    side = SIDE // 2
    rng = rng_of("clutter", seed, index)
    ys, xs = np.mgrid[0:side, 0:side] + 0.5
    colours, backgrounds = (np.array(list(c.values()), np.float64) for c in (COLOURS, BACKGROUNDS))
    canvas = np.broadcast_to(backgrounds[rng.integers(len(backgrounds))], (side, side, 3)).copy()
    for _ in range(rng.integers(1, 9)):
        paint = (
            colours[rng.integers(len(colours))] if rng.random() < 0.8 else backgrounds[rng.integers(len(backgrounds))]
        )
        x, y, half = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(4.5, 19.0)
        cover = coverage(str(rng.choice(SHAPES)), xs - x, ys - y, half)[..., None]
        canvas += cover * (paint - canvas)
    return np.round(canvas).astype(np.uint8)[None]
