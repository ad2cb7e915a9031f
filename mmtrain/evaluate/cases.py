"""What an evaluation asks: prompts, each with its seed, its truth where that is known, and its first frame.

Held-out scenes of the world, or a file of prompts. Making the clips and judging them is `run.py`'s matter.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from mmtrain.data import world
from mmtrain.errors import UserError
from mmtrain.rng import key
from mmtrain.sample.write import open_image

ONE, TWO, OWN, NEUTRAL = "one object", "two objects", "prompts", "neutral prompts"
PROMPT = "{prompt}"
"""Stands for the prompt in the words that are put around it."""
_SEEDS = 1 << 31
Numbers = dict[str, bool | float | None]
"""What a metric gives of one clip: by name, a bool where an average is a share, None where it does not apply."""


@runtime_checkable
class Prepared(Protocol):
    """A metric that must know all that is asked before the first clip."""

    def prepare(self, cases: Sequence["Case"]) -> None: ...


@runtime_checkable
class Chunked(Protocol):
    """A metric that must know how many frames a chunk of a model's long clips has; None: it makes no long clips."""

    def chunked(self, length: int | None) -> None: ...


@runtime_checkable
class Against(Protocol):
    """A metric that holds a clip uint8 ``[t h w c]`` against the base's of the same case; the base's against itself."""

    def against(self, frames: np.ndarray, base: np.ndarray, case: "Case") -> Numbers: ...


@runtime_checkable
class OfSet(Protocol):
    """A metric of many clips together: keeps features ``[d]`` of each clip uint8 ``[t h w c]``, and gives numbers of a
    set's ``[n d]``, whose owners ``[n]`` are prompts."""

    @property
    def lower_is_better(self) -> Sequence[str]: ...

    def features(self, frames: np.ndarray) -> np.ndarray: ...

    def of_set(self, features: np.ndarray, owners: np.ndarray) -> dict[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question.

    Attributes:
        name: a word for its files.
        group: what is averaged together; ``ONE``, ``TWO``, ``OWN`` or ``NEUTRAL``.
        prompt: what both models are told.
        seed: of both models' noise.
        truth: ``world.Scene.truth()`` of a scene of the world.
        scene: the scene itself, whose first frame is the true one.
        image: a file that holds the first frame, for a prompt of the user's own.
        plain: the prompt before words were put around it; None where none were.
        owner: the name that the seeds of one prompt share; None for one seed.
    """

    name: str
    group: str
    prompt: str
    seed: int
    truth: dict[str, Any] | None = None
    scene: world.Scene | None = None
    image: Path | None = None
    plain: str | None = None
    owner: str | None = None

    def first_frame(self, height: int, width: int) -> np.ndarray:
        """The true first frame, uint8 ``[h w c]``.

        Raises:
            UserError: none is known, or the file is no image.
        """
        if self.scene is not None:
            drawn = Image.fromarray(world.render(self.scene, num_frames=1, side=min(height, width))[0])
            return np.asarray(drawn if drawn.size == (width, height) else drawn.resize((width, height)))
        if self.image is None:
            wanted = 'an "image" beside it, in a .jsonl'
            raise UserError(f"prompt “{self.prompt}”", "no first frame", wanted, "or leave the way `image` out")
        opened = Image.fromarray(open_image(self.image))
        return np.asarray(opened.resize((width, height), Image.Resampling.LANCZOS))


def heldout(*, count: int, two_objects: int, seed: int, motions: Mapping[str, float] | None = None) -> list[Case]:
    """Scenes that training never saw: ``count`` of one object, then ``two_objects`` of two.

    Args:
        motions: shares of their objects, as `world.scene` takes them.

    Raises:
        UserError: a motion that the world does not know, or shares of more than all.
    """
    world.shares_of_motions(motions or {})
    return [*_scenes(ONE, count, seed, motions), *_scenes(TWO, two_objects, seed, motions)]


def _scenes(group: str, count: int, seed: int, motions: Mapping[str, float] | None) -> Iterator[Case]:
    word = group.split()[0]
    for i in range(count):
        scene = world.scene(seed, "heldout", i, two_objects=float(group == TWO), motions=motions)
        yield Case(
            name=f"{word}-{i:03d}",
            group=group,
            prompt=world.caption(scene, world.rng_of("evaluate", seed, group, i)),
            seed=key("evaluate", seed, group, i) % _SEEDS,
            truth=scene.truth(),
            scene=scene,
        )


def around(cases: Sequence[Case], words: str | None, neutral: bool) -> list[Case]:
    """Cases with a brand's words around their prompts, and after them, if asked for, the prompts by themselves.

    Args:
        words: such as ``{prompt}, in zwx style``; None leaves the prompts alone.
        neutral: whether each case comes again without the words, in the group ``NEUTRAL``, same seed and truth.

    Raises:
        UserError: words without a place for the prompt; neutral prompts beside none.
    """
    if words is None:
        if neutral:
            fix = "add --words, or leave --neutral out"
            raise UserError("--neutral", "no words that the others have", "--words '{prompt}, in our style'", fix)
        return list(cases)
    if PROMPT not in words:
        raise UserError("--words", repr(words), f"words around {PROMPT}", f"write it like '{PROMPT}, in our style'")
    told = [replace(case, prompt=words.replace(PROMPT, case.prompt), plain=case.prompt) for case in cases]
    bare = [replace(case, name=f"neutral-{case.name}", group=NEUTRAL) for case in cases]
    return [*told, *(bare if neutral else [])]


def seeded(cases: Sequence[Case], seeds: int) -> list[Case]:
    """Each case so many times, with seeds that count on; the first is as it was."""
    if seeds == 1:
        return list(cases)
    times = ((case, i) for case in cases for i in range(seeds))
    return [replace(case, name=f"{case.name}-{i}", owner=case.name, seed=(case.seed + i) % _SEEDS) for case, i in times]


def from_file(path: Path, *, seed: int) -> list[Case]:
    """Prompts of a text file, one a line; or of a ``.jsonl`` file, one object a line with ``prompt`` and, where known,
    ``truth`` (as `world.Scene.truth` tells it) and ``image`` (a first frame, its path seen from the file's folder).

    Raises:
        UserError: no such file, no prompt in it, or a line that is no prompt.
    """
    if not path.is_file():
        raise UserError(str(path), "no such file", "a .txt or .jsonl of prompts", "or `--prompts-from heldout`")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"no UTF-8 ({error.reason})", "one prompt a line", "save it as UTF-8") from error
    read = _json if path.suffix == ".jsonl" else _plain
    found = [
        Case(name=f"prompt-{i:03d}", group=OWN, seed=key("evaluate", seed, OWN, i) % _SEEDS, **facts)
        for i, facts in enumerate(read(line, f"{path}:{n}", path) for n, line in enumerate(lines, 1) if line.strip())
    ]
    if not found:
        raise UserError(str(path), "no prompt in it", "one prompt a line", "write some")
    return found


def _plain(line: str, where: str, path: Path) -> dict[str, Any]:
    return {"prompt": line.strip()}


def _json(line: str, where: str, path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except ValueError as error:
        raise UserError(where, f"no JSON ({error})", 'a line like {"prompt": "a red circle"}', "correct it") from error
    known = {"prompt": str, "truth": dict, "image": str}
    sound = isinstance(facts, dict) and "prompt" in facts and facts.keys() <= known.keys()
    if not sound or not all(isinstance(value, known[name]) for name, value in facts.items()):
        wanted = 'an object with "prompt" and perhaps "truth" and "image"'
        raise UserError(where, line.strip()[:80], wanted, "correct the line")
    if "truth" in facts and not _is_truth(facts["truth"]):
        wanted = '"background", "relation" and one or two "objects" of "shape", "colour", "size" and "motion"'
        raise UserError(where, f"the truth {json.dumps(facts['truth'])[:80]}", wanted, "correct it, or leave it out")
    if "image" in facts:
        facts["image"] = path.parent / facts["image"]
    return dict(facts)


def _is_truth(facts: dict[str, Any]) -> bool:
    """Whether these are facts as a scene of the world tells them."""
    objects = facts.get("objects")
    if facts.keys() != {"background", "objects", "relation"} or not isinstance(objects, list):
        return False
    told = {"shape", "colour", "size", "motion"}
    return len(objects) in (1, 2) and all(isinstance(o, dict) and o.keys() == told for o in objects)
