"""The metric of CLIP (Radford et al. 2021): how close a clip's frames are to its prompt, how much closer than to the
other prompts, and how alike its frames are to each other.

A score means nothing without the model that gave it, so its name is part of the number's; and little without the lift,
since some models give any pair a high score. The mean of the cosines themselves, not Hessel's 2.5 times their positive
part.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.batch import to_unit
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case, Numbers

_FRAMES = 8  # looked at, evenly through a clip
_OTHERS = 64  # other prompts that the lift is over


class ClipScore:
    """``CLIP score``, ``CLIP lift`` and ``CLIP consistency``, each with the model's name.

    The lift is the score minus the mean score of the same frames with the evaluation's other prompts; None where there
    are none. The consistency is the mean cosine of frames that follow each other; a still picture has 1.

    Args:
        path: folder or hub id of a CLIP.
    """

    def __init__(self, *, path: str) -> None:
        self.clip, self.name = CLIP(path=path), Path(path).name
        self._words: dict[str, Tensor] = {}

    def prepare(self, cases: Sequence[Case]) -> None:
        """Read all prompts.

        Raises:
            UserError: one is too long for the text tower.
        """
        for prompt in dict.fromkeys(case.prompt for case in cases):
            with torch.no_grad():
                self._words[prompt] = F.normalize(self.clip.embed_text([prompt])[0], dim=-1)

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]`` of a case that `prepare` has seen."""
        if case.prompt not in self._words:
            raise UserError("metric clip_score", f"the prompt {case.prompt!r}", "one that was prepared", "call prepare")
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int))
        with torch.no_grad():
            pixels = to_unit(frames[chosen].copy()).to(self.clip.model.device)
            seen = F.normalize(self.clip.embed_images(pixels), dim=-1)
        score = float((seen @ self._words[case.prompt]).mean())
        others = [words for prompt, words in self._words.items() if prompt != case.prompt][:_OTHERS]
        lift = score - float((seen @ torch.stack(others).T).mean()) if others else None
        alike = float((seen[1:] * seen[:-1]).sum(-1).mean()) if len(seen) > 1 else None
        named = {"score": score, "lift": lift, "consistency": alike}
        return {f"CLIP {what} ({self.name})": number for what, number in named.items()}
