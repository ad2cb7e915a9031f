"""Clips of the world that are broken on purpose, among whole ones: what a detector of inconsistent frames learns from.

A fault is one that frames have among themselves: a scene that runs backwards is wrong of a caption, not of a clip. Each
shows to whoever takes every other frame. All clips are worn alike, whole or broken, because softness and flicker are no
fault: what a model made has both.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmtrain.data import world
from mmtrain.data.world import Scene

WHOLE, BROKEN = "a whole clip", "a broken clip"
"""The two captions."""

NO_FAULT = "none"
_LASTS = 3  # frames, of a fault that passes: every other frame of a clip, or 8 spread over it, show one of them
_OFF = (10.0, 18.0)  # pixels that a jumped object stands off its path
_FROZEN = (6, 9)  # frames that stand still
_MELTED = (3.0, 5.0)  # deviation in pixels of the blur at a melted clip's end
_SOFT = 1.0  # most wear: deviation in pixels of a blur …
_FLICKER, _PATCH = 3.0, 8  # … and in levels of flicker, in patches of so many pixels


def samples(
    seed: int,
    split: str,
    count: int,
    two_objects: float,
    pace: float,
    share: float,
    motions: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, np.ndarray, list[str], dict[str, Any]]]:
    """Key, frames uint8 ``[t h w c]``, caption and facts of each of ``count`` scenes, of which ``share`` are broken.

    The facts are the scene's, and ``fault``: one of ``FAULTS`` or ``none``.
    """
    for index in range(count):
        scene = world.scene(seed, split, index, two_objects, pace, motions)
        rng = world.rng_of("broken", seed, split, index)
        fault = NO_FAULT
        if rng.random() < share:
            moves = any(sprite.motion != "still" for sprite in scene.sprites)
            fault = str(rng.choice([name for name in FAULTS if moves or name != "frozen"]))
        frames = world.render(scene) if fault == NO_FAULT else FAULTS[fault](scene, rng)
        caption = WHOLE if fault == NO_FAULT else BROKEN
        yield f"broken-{split}-{index:06d}", worn(frames, rng), [caption], {**scene.truth(), "fault": fault}


def worn(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames uint8 ``[t h w c]``, softened and with patches that flicker, each more or less."""
    t, h, w, c = frames.shape
    soft = _blurred(frames, np.full(t, rng.uniform(0, _SOFT)))
    patches = rng.uniform(0, _FLICKER) * rng.standard_normal((t, -(-h // _PATCH), -(-w // _PATCH), c))
    flicker = patches.repeat(_PATCH, 1).repeat(_PATCH, 2)[:, :h, :w]
    return np.clip(np.round(soft + flicker), 0, 255).astype(np.uint8)


def vanished(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The first object is gone from some frame on, or comes out of nothing."""
    frames = _from_some_frame_on(scene, replace(scene, sprites=scene.sprites[1:]), rng)
    return frames if rng.random() < 0.5 else frames[::-1]


def jumped(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The first object stands off its path for a moment."""
    sprite = scene.sprites[0]
    path = np.array([sprite.at(t / (world.NUM_FRAMES - 1)) for t in range(world.NUM_FRAMES)])
    while True:
        at, angle = int(rng.integers(world.NUM_FRAMES - _LASTS + 1)), rng.uniform(0, 2 * np.pi)
        dx, dy = rng.uniform(*_OFF) * np.array([np.cos(angle), np.sin(angle)])
        x, y, half = (path[at : at + _LASTS] + (dx, dy, 0)).T
        if (np.minimum(x, y) >= half).all() and (np.maximum(x, y) <= world.SIDE - half).all():
            break
    aside = replace(sprite, x=sprite.x + dx, y=sprite.y + dy)
    frames = world.render(scene)
    frames[at : at + _LASTS] = world.render(replace(scene, sprites=(aside, *scene.sprites[1:])))[at : at + _LASTS]
    return frames


def foreign(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Frames of another scene between those of this one."""
    frames, at = world.render(scene), int(rng.integers(world.NUM_FRAMES - _LASTS + 1))
    other = world.scene(int(rng.integers(1 << 31)), "train", 0)
    frames[at : at + _LASTS] = world.render(other)[at : at + _LASTS]
    return frames


def swapped(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """From some frame on two objects have each other's colours, one alone has another."""
    colours = [sprite.colour for sprite in scene.sprites][::-1]
    if len(colours) == 1:
        colours = [str(rng.choice([name for name in world.COLOURS if name not in colours]))]
    changed = (replace(s, colour=colour) for s, colour in zip(scene.sprites, colours, strict=True))
    return _from_some_frame_on(scene, replace(scene, sprites=tuple(changed)), rng)


def reshaped(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """From some frame on the first object has another shape."""
    first, *others = scene.sprites
    shape = str(rng.choice([name for name in world.SHAPES if name != first.shape]))
    return _from_some_frame_on(scene, replace(scene, sprites=(replace(first, shape=shape), *others)), rng)


def melted(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Outlines run, more and more from some frame on."""
    since, most = _some_frame(rng), rng.uniform(*_MELTED)
    ages = np.clip(np.arange(world.NUM_FRAMES) - since, 0, None) / (world.NUM_FRAMES - 1 - since)
    return np.round(_blurred(world.render(scene), most * ages)).astype(np.uint8)


def frozen(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One frame is repeated while the scene goes on, and then catches up."""
    frames, lasts = world.render(scene), int(rng.integers(*_FROZEN, endpoint=True))
    at = int(rng.integers(1, world.NUM_FRAMES - lasts - 1))
    frames[at : at + lasts] = frames[at]
    return frames


FAULTS: dict[str, Callable[[Scene, np.random.Generator], np.ndarray]] = {
    fault.__name__: fault for fault in (vanished, jumped, foreign, swapped, reshaped, melted, frozen)
}
"""By name, what breaks a scene: it gives frames uint8 ``[t h w c]``."""


def _some_frame(rng: np.random.Generator) -> int:
    """One that leaves enough frames before it and from it on."""
    return int(rng.integers(_LASTS, world.NUM_FRAMES - _LASTS, endpoint=True))


def _from_some_frame_on(scene: Scene, other: Scene, rng: np.random.Generator) -> np.ndarray:
    at = _some_frame(rng)
    return np.concatenate([world.render(scene)[:at], world.render(other)[at:]])


def _blurred(frames: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Frames ``[t h w c]``, each under a Gaussian of its own deviation in pixels; float32."""
    blurred = frames.astype(np.float32)
    for frame, deviation in zip(blurred, deviations, strict=True):
        reach = int(np.ceil(3 * deviation))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(deviation, 1e-6)) ** 2)
        for axis in (0, 1):
            sides = [(reach, reach) if axis == i else (0, 0) for i in range(3)]
            wide, n = np.pad(frame, sides, mode="edge"), frame.shape[axis]
            moved = (tap * np.take(wide, range(i, i + n), axis) for i, tap in enumerate(taps / taps.sum()))
            frame[:] = sum(moved)
    return blurred
