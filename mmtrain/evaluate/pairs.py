"""The pairs that an alignment is asked about: held-out scenes of the world, or pairs from shards; each told apart."""

from itertools import count as counter
from itertools import product

import numpy as np

from mmtrain.data import world
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.evaluate.embedded import Item

FRAMES = 8  # of a clip, for a tower that takes any number


def heldout(*, count: int, seed: int, num_frames: int | None) -> list[Item]:
    """Held-out scenes of one object, no two of the same colour, shape, motion and background: so that no caption, which
    tells all four, is true of two of them."""
    kinds = product(world.COLOURS, world.SHAPES, world.MOTIONS)
    most = sum(world.held_out(*kind) for kind in kinds) * len(world.BACKGROUNDS)
    if count > most:
        raise UserError("--count", str(count), f"at most {most}, the held-out scenes that differ", "ask for fewer")
    items: list[Item] = []
    told: set[tuple[str, ...]] = set()
    for i in counter():
        if len(items) == count:
            break
        scene = world.scene(seed, "heldout", i, two_objects=0.0)
        sprite = scene.sprites[0]
        facts = (sprite.colour, sprite.shape, sprite.motion, scene.background)
        if facts in told:
            continue
        told.add(facts)
        caption = world.caption(scene, world.rng_of("pairs", seed, i))
        items.append(Item(f"heldout-{i:06d}", caption, spread(world.render(scene), num_frames), scene.truth()))
    return items


def from_shards(shards: str, *, count: int, num_frames: int | None, distinct: bool) -> tuple[list[Item], int]:
    """The first pairs of shards, and how many were passed over because their captions had come before: none, unless
    captions must be distinct.

    Raises:
        UserError: fewer than two, or shards that `Source` refuses.
    """
    source = Source(shards=shards)
    items: list[Item] = []
    told: set[str] = set()
    passed = 0
    for i in range(len(source)):
        if len(items) == count:
            break
        sample = source.sample(i)
        caption = sample.captions[0]
        if distinct and caption in told:
            passed += 1
            continue
        told.add(caption)
        items.append(Item(sample.key, caption, spread(sample.frames, num_frames), sample.truth))
    if len(items) < 2:
        came = f"{len(items)} {'distinct captions' if distinct else 'samples'}"
        raise UserError(shards, came, "at least 2 pairs", "name other shards")
    return items, passed


def asked(
    prompts_from: str, *, count: int, seed: int, num_frames: int | None, distinct: bool = True
) -> tuple[list[Item], int]:
    """``heldout``, or shards."""
    if prompts_from == "heldout":
        return heldout(count=count, seed=seed, num_frames=num_frames), 0
    return from_shards(prompts_from, count=count, num_frames=num_frames, distinct=distinct)


def spread(frames: np.ndarray, num_frames: int | None) -> np.ndarray:
    """That many frames of ``[t h w c]``, spread over the clip; of an image the one that it has."""
    wanted = num_frames if num_frames is not None else min(FRAMES, len(frames))
    if len(frames) < wanted:
        return frames
    chosen = np.linspace(0, len(frames) - 1, wanted).round().astype(int)
    return np.ascontiguousarray(frames[chosen])
