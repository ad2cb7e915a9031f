"""What metrics of a shared space look at: captions and their pictures or clips, embedded, and what is true of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mmtrain.backbone.aligned import Aligned
from mmtrain.batch import to_unit
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Numbers
from mmtrain.evaluate.table import Row

_AT_ONCE = 16  # pairs that go through the towers together


@dataclass(frozen=True)
class Item:
    """A caption and what it tells of: frames uint8 ``[t h w c]``, and the facts where they are known."""

    name: str
    caption: str
    frames: np.ndarray
    truth: Mapping[str, Any] | None = None

    def fact(self, path: str) -> str:
        """The fact at a dotted path, such as ``objects.0.colour``.

        Raises:
            UserError: nothing is known there.
        """
        found: Any = self.truth
        try:
            for key in path.split("."):
                found = found[int(key)] if key.isdecimal() else found[key]
        except (KeyError, IndexError, TypeError) as error:
            wanted = f"{path} in the sample's .json"
            raise UserError(f"sample {self.name}", "no such fact", wanted, "leave this metric out") from error
        return str(found)


@dataclass(frozen=True)
class Embedded:
    """Items with their embeddings of unit length, float64 ``[n d]``, and how other captions are embedded."""

    items: Sequence[Item]
    text: np.ndarray
    visual: np.ndarray
    embed: Callable[[Sequence[str]], np.ndarray]


class EmbeddingMetric(ABC):
    """A metric of embeddings, as against one of frames.

    Attributes:
        distinct: whether it wants captions that all differ.
    """

    distinct = True

    @abstractmethod
    def __call__(self, seen: Embedded) -> dict[str, list[Numbers]]:
        """By group, the numbers of each item, in the items' order."""

    def rows(self, seen: Mapping[str, Embedded], *, seed: int) -> list[Row]:
        """Rows of the table that are no means over items, from both states by name, base first."""
        return []


@torch.no_grad()
def embedded(backbone: Aligned, items: Sequence[Item]) -> Embedded:
    """Items as a backbone sees and reads them."""
    device = backbone.log_scale.device

    @torch.no_grad()
    def embed(captions: Sequence[str]) -> np.ndarray:
        parts = [captions[i : i + _AT_ONCE] for i in range(0, len(captions), _AT_ONCE)]
        return np.concatenate([_unit(backbone.embed_text(part)) for part in parts])

    visual = []
    for start in range(0, len(items), _AT_ONCE):
        frames = torch.stack([to_unit(item.frames) for item in items[start : start + _AT_ONCE]])
        visual.append(_unit(backbone.embed_videos(frames.to(device))))
    return Embedded(items, embed([item.caption for item in items]), np.concatenate(visual), embed)


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return F.normalize(embeddings.double(), dim=-1).cpu().numpy()


def shape_of_space(seen: Embedded) -> dict[str, float]:
    """How near pairs are, and how evenly embeddings lie on the sphere (Wang & Isola 2020, α = 2, t = 2).

    ``alignment`` is E|x − y|² of pairs, 0 at best; ``uniformity`` log E exp(−2|x − x′|²) of a side, lower is more even.
    """
    apart = {"alignment": float(((seen.text - seen.visual) ** 2).sum(1).mean())}
    for name, side in (("uniformity of text", seen.text), ("uniformity of visual", seen.visual)):
        squares = 2 - 2 * side @ side.T
        pairs = squares[~np.eye(len(side), dtype=bool)]
        apart[name] = float(np.log(np.exp(-2 * pairs).mean()))
    return apart
