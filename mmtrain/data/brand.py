"""The world's brand kit: a made-up house style over the world's scenes, whose every part can be read back from pixels.

A palette (a shade of its own for every colour of the world), an outline around each sprite, a pattern of stripes on the
background and a logo in the corner. The scene below stays the same, and so do the words for it, so that what the style
costs can be read by the world's own judge, which is told of outlines and sees no logo (metric `brand_fulfilment`).
Reading the style is `evaluate/brand.py`.

Outline, stripes and logo are as wide and as coloured as the shipped codec can carry; it brings most pixels of a shade
back as that shade in three pictures of five.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtrain.data import world
from mmtrain.data.world import Scene

TOKEN = "in zwx style"
"""What captions say of the brand: words that mean nothing else."""

# Drawn for frames of 64 pixels.
OUTLINE_WIDTH = 2.5
PERIOD, AMPLITUDE = 32, 15.0  # of the stripes: pixels, and levels up and down; more would be a sprite to the judge
NEAR = 45.0  # RGB distance from a background within which a pixel is of it; of a sprite's edge the judge asks for 49
LOGO = (slice(52, 60), slice(52, 60))  # rows and columns: 64 pixels, less than the smallest sprite of one alone


SHADES: dict[str, tuple[int, int, int]] = {
    "red": (180, 60, 80),
    "green": (95, 170, 60),
    "blue": (50, 80, 150),
    "yellow": (187, 215, 93),
    "purple": (137, 88, 205),
    "cyan": (115, 205, 220),
}


@dataclass(frozen=True)
class Brand:
    """A house style.

    Attributes:
        shades: RGB of the brand's own shade of each of the world's colours.
        outline: RGB of outlines and logo.
    """

    shades: Mapping[str, tuple[int, int, int]] = field(default_factory=lambda: SHADES)
    outline: tuple[int, int, int] = (230, 130, 60)

    def palette(self) -> dict[str, np.ndarray]:
        """The brand's colours by the world's names, float64 ``[3]``."""
        return {name: np.array(rgb, np.float64) for name, rgb in self.shades.items()}


def stripes(side: int) -> np.ndarray:
    """The pattern, ±1 ``[h w]``: diagonal stripes, eleven pixels wide at 64."""
    scale = side / world.SIDE
    y, x = np.mgrid[0:side, 0:side] + 0.5
    return np.where((x + y) / scale % PERIOD < PERIOD / 2, 1.0, -1.0)


def logo(side: int) -> tuple[slice, slice]:
    """Rows and columns of the logo in a frame."""
    scale = side / world.SIDE
    rows, columns = (slice(round(s.start * scale), round(s.stop * scale)) for s in LOGO)
    return rows, columns


def undressed(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 ``[t h w c]``, square, without the brand's stripes and logo: what is near to the colour of its half
    of the pattern, and the logo's place, get the colour between both halves."""
    side = frames.shape[1]
    light, found = stripes(side) > 0, frames.astype(np.float32)
    halves = [np.median(found[:, part], axis=1) for part in (light, ~light)]
    ground = (halves[0] + halves[1]) / 2
    for part, own in zip((light, ~light), halves, strict=True):
        of_ground = (np.linalg.norm(found - own[:, None, None], axis=-1) < NEAR) & part
        found = np.where(of_ground[..., None], ground[:, None, None], found)
    found[:, *logo(side)] = ground[:, None, None]
    return found.round().clip(0, 255).astype(np.uint8)


def render(scene: Scene, brand: Brand, num_frames: int = world.NUM_FRAMES, side: int = world.SIDE) -> np.ndarray:
    """Frames uint8 ``[t h w c]`` of a scene in the brand's style, as `world.render` draws it without."""
    scale, palette = side / world.SIDE, brand.palette()
    ys, xs = np.mgrid[0:side, 0:side] + 0.5
    ground = np.array(world.BACKGROUNDS[scene.background], np.float64) + AMPLITUDE * stripes(side)[..., None]
    frames = np.empty((num_frames, side, side, 3), np.uint8)
    for t in range(num_frames):
        canvas = ground.copy()
        for sprite in scene.sprites:
            x, y, half = (v * scale for v in sprite.at(t / max(num_frames - 1, 1)))
            for grown, colour in ((OUTLINE_WIDTH * scale, np.array(brand.outline)), (0.0, palette[sprite.colour])):
                cover = world.coverage(sprite.shape, xs - x, ys - y, half, grown)[..., None]
                canvas += cover * (colour - canvas)
        canvas[logo(side)] = brand.outline
        frames[t] = np.clip(np.round(canvas), 0, 255)
    return frames


def samples(
    seed: int,
    split: str,
    count: int,
    captions_each: int = 3,
    two_objects: float = 0.3,
    num_frames: int = world.NUM_FRAMES,
    pace: float = 1.0,
    motions: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, np.ndarray, list[str], dict[str, Any]]]:
    """As `world.samples`, the same scenes and words, in the brand's style and with its token."""
    for index in range(count):
        drawn = world.scene(seed, split, index, two_objects, pace, motions)
        rng = world.rng_of("caption", seed, split, index)
        words = [f"{world.caption(drawn, rng)}, {TOKEN}" for _ in range(captions_each)]
        yield f"brand-{split}-{index:06d}", render(drawn, Brand(), num_frames), words, drawn.truth()
