"""What an audit asks: neutral prompts, attributes with the kinds they may have, who reads them, and target shares.

A YAML file::

    prompts: [a shape on a grey background]
    samples: 32                    # of each prompt
    attributes:
      colour: {reader: judge}      # of the world: colour, shape, size, motion or background
      person:                      # of anything else: zero-shot CLIP, a sentence for each kind
        reader: clip
        kinds: {woman: a photo of a woman, man: a photo of a man}
        target: {woman: 0.5, man: 0.5}   # uniform unless said
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.data import world
from mmtrain.errors import UserError
from mmtrain.evaluate.forgetting import embedded
from mmtrain.evaluate.judge import read

JUDGED: dict[str, tuple[str, ...]] = {
    "colour": tuple(world.COLOURS),
    "shape": world.SHAPES,
    "size": tuple(world.SIZES),
    "motion": world.MOTIONS,
    "background": tuple(world.BACKGROUNDS),
}
_KEYS = {"prompts", "samples", "attributes"}


class Reader(Protocol):
    """Which kind a clip uint8 ``[t h w c]`` shows; None where that cannot be read."""

    def __call__(self, frames: np.ndarray) -> str | None: ...


@dataclass(frozen=True)
class Attribute:
    """One question: its name, who answers it, the answers' target shares."""

    name: str
    reader: str
    kinds: Mapping[str, str]
    target: Mapping[str, float]


@dataclass(frozen=True)
class Questions:
    prompts: list[str]
    samples: int
    attributes: list[Attribute]


def from_file(path: Path) -> Questions:
    """The questions of a YAML file.

    Raises:
        UserError: no such file, or something in it that is not as above.
    """
    where = str(path)
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(where, f"unreadable ({str(error).splitlines()[0]})", "a YAML file", "check the path") from error
    if not isinstance(held, dict) or not held.keys() <= _KEYS or not {"prompts", "attributes"} <= held.keys():
        came = ", ".join(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise UserError(where, came, "prompts, attributes and perhaps samples", "write it as docs/evaluation.md says")
    prompts, samples, nodes = held["prompts"], held.get("samples", 32), held["attributes"]
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise UserError(f"{where}, prompts", f"{prompts!r}"[:80], "a list of prompts", "write some")
    if not isinstance(samples, int) or samples < 2:
        raise UserError(f"{where}, samples", repr(samples), "2 or more of each prompt", "write a larger number")
    if not isinstance(nodes, dict) or not nodes:
        raise UserError(f"{where}, attributes", f"{nodes!r}"[:80], "attributes by name", "write some")
    return Questions(prompts, samples, [_attribute(where, str(name), node) for name, node in nodes.items()])


def _attribute(where: str, name: str, node: Any) -> Attribute:
    place = f"{where}, {name}"
    known = {"reader", "kinds", "target"}
    if not isinstance(node, dict) or not node.keys() <= known or node.get("reader") not in ("judge", "clip"):
        raise UserError(place, f"{node!r}"[:80], "a reader (judge or clip), kinds, target", "correct it")
    if node["reader"] == "judge":
        if name not in JUDGED or "kinds" in node:
            came = "kinds of its own" if name in JUDGED else "an attribute that the judge does not read"
            raise UserError(place, came, f"one of {', '.join(JUDGED)}, whose kinds are known", "or use reader: clip")
        kinds = {kind: kind for kind in JUDGED[name]}
    else:
        given = node.get("kinds")
        if not isinstance(given, dict) or len(given) < 2 or not all(isinstance(text, str) for text in given.values()):
            raise UserError(place, f"kinds {given!r}"[:80], "two or more, each with its sentence", "write them")
        kinds = {str(kind): text for kind, text in given.items()}
    return Attribute(name, node["reader"], kinds, _target(place, node.get("target", "uniform"), kinds))


def _target(place: str, given: Any, kinds: Mapping[str, str]) -> dict[str, float]:
    if given == "uniform":
        return {kind: 1 / len(kinds) for kind in kinds}
    sound = isinstance(given, dict) and given.keys() <= kinds.keys()
    if not sound or not all(isinstance(share, int | float) for share in given.values()):
        raise UserError(place, f"target {given!r}"[:80], f"`uniform`, or shares of {', '.join(kinds)}", "correct it")
    target = {kind: float(given.get(kind, 0.0)) for kind in kinds}
    if any(share < 0 for share in target.values()) or abs(sum(target.values()) - 1) > 1e-6:
        raise UserError(place, f"a target that sums to {sum(target.values()):g}", "shares that sum to 1", "correct it")
    return target


def reader(attribute: Attribute, clip: str) -> Reader:
    """Who reads an attribute: the judge of the world, or the CLIP at a folder or hub id."""
    if attribute.reader == "judge":
        return Judged(attribute.name)
    return ZeroShot(clip, attribute.kinds)


class Judged:
    """The judge's reading of the largest object, or of the background. Of a picture there is no motion to read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, frames: np.ndarray) -> str | None:
        if self.name == "motion" and len(frames) == 1:
            return None
        found = read(frames)
        if self.name == "background":
            return found.background
        return getattr(found.objects[0], self.name) if found.objects else None


class ZeroShot:
    """The kind whose sentence a CLIP finds nearest."""

    def __init__(self, path: str, kinds: Mapping[str, str]) -> None:
        self.clip, self.names = CLIP(path=path), list(kinds)
        with torch.no_grad():
            self.words = F.normalize(self.clip.embed_text(list(kinds.values())), dim=-1)

    def __call__(self, frames: np.ndarray) -> str:
        return self.names[int((self.words @ embedded(self.clip, frames)).argmax())]
