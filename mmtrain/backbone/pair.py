"""Two towers that were never trained together, as one Backbone: a text tower beside an image or video tower.

The towers are one file each (`clip_text.py`, `language.py`; `clip_vision.py`, `timesformer.py`, `conv3d.py`). What
joins them, a projection or the towers' own training, is an adapter's matter.
"""

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmtrain.backbone.aligned import Aligned, LongCaptions
from mmtrain.backbone.weights import digest, freeze, write_manifest
from mmtrain.config import build
from mmtrain.errors import UserError

FACTS = "pair.json"


class Tower(Protocol):
    """What a tower of a pair has: a network of one library's class, and a width.

    Attributes:
        model: the network.
        width: of its features.
        path: where its weights came from.
    """

    model: Any
    path: str

    @property
    def width(self) -> int: ...

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A folder that the network's own class opens, LoRA folded in, and that the tower's constructor takes."""


class TextTower(Tower, Protocol):
    """``(ids [b l], mask [b l]) → [b d]``, with its tokenizer and what captions must end with."""

    tokenizer: Any
    ending: str


class VisualTower(Tower, Protocol):
    """``frames [b t c h w]`` in [-1, 1] → ``[b n d]``; refuses a number of frames that it cannot see.

    Attributes:
        num_frames: that it wants of a clip, or None for any number.
    """

    @property
    def num_frames(self) -> int | None: ...


class Towers(nn.Module):
    """The network of a pair: its two towers, temperature and bias."""

    def __init__(self, text: Any, visual: Any, temperature: float, bias: float | None) -> None:
        super().__init__()
        self.text, self.visual = text, visual
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.logit_bias: Any = None if bias is None else nn.Parameter(torch.tensor(float(bias)))


class Pair(Aligned):
    """A text and a visual tower, frozen on arrival.

    Args:
        text: a `TextTower`.
        visual: a `VisualTower`.
        temperature: at the start; Radford et al. 2021 take 0.07, SigLIP 0.1.
        bias: at the start, for the sigmoid loss (SigLIP takes −10); None for none.
        long_captions: ``refuse`` or ``truncate`` a caption beyond the text tower's limit.
    """

    def __init__(
        self,
        *,
        text: Any,
        visual: Any,
        temperature: float = 0.07,
        bias: float | None = None,
        long_captions: LongCaptions = "refuse",
    ) -> None:
        if temperature <= 0:
            raise UserError("backbone.temperature", str(temperature), "a number above 0", "0.07 is usual")
        super().__init__(tokenizer=text.tokenizer, long_captions=long_captions)
        towers = Towers(text, visual, temperature, bias)
        self.towers: Any = freeze(towers)
        self.ending = text.ending
        self.bias = towers.logit_bias

    @property
    def network(self) -> nn.Module:
        return self.towers

    @property
    def text_tower(self) -> list[nn.Module]:
        return [self.towers.text]

    @property
    def visual_tower(self) -> list[nn.Module]:
        return [self.towers.visual]

    @property
    def widths(self) -> tuple[int, int]:
        return self.towers.text.width, self.towers.visual.width

    @property
    def num_frames(self) -> int | None:
        return self.towers.visual.num_frames

    @property
    def base(self) -> dict[str, str]:
        return {"path": f"{self.towers.text.path} + {self.towers.visual.path}", "digest": digest(self.towers)}

    @property
    def log_scale(self) -> nn.Parameter:
        return self.towers.logit_scale

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.towers.text(ids, mask)

    def visual_features(self, frames: Tensor) -> Tensor:
        return self.towers.visual(frames)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """``text/`` and ``visual/``, each as its own library has it, and ``pair.json`` beside them."""
        bias = None if self.bias is None else float(self.bias)
        facts: dict[str, Any] = {
            "temperature": math.exp(-float(self.log_scale)),
            "bias": bias,
            "long_captions": self.long_captions,
        }
        for name in ("text", "visual"):
            tower = getattr(self.towers, name)
            tower.save(folder / name, dtype)
            facts[name] = f"{type(tower).__module__}.{type(tower).__name__}"
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        write_manifest(folder)


def opened(*, path: str) -> Pair:
    """The pair that a folder holds, as `mmtrain export` writes one.

    Raises:
        UserError: no such folder, or what it names is no tower of mmtrain.
    """
    file = Path(path) / FACTS
    if not file.is_file():
        raise UserError(path, f"no {FACTS}", "a pair that `mmtrain export` wrote", "correct the path")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        kinds = {name: str(facts.pop(name)) for name in ("text", "visual")}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(str(file), f"unreadable ({error!r})", "what `mmtrain export` wrote", "export again") from error
    strange = [kind for kind in kinds.values() if not kind.startswith("mmtrain.backbone.")]
    if strange or facts.keys() != {"temperature", "bias", "long_captions"}:
        raise UserError(str(file), f"towers {kinds}, facts {sorted(facts)}", "towers of mmtrain", "export again")
    towers = {name: build({"_target_": kind, "path": str(Path(path) / name)}) for name, kind in kinds.items()}
    return Pair(**towers, **facts)
