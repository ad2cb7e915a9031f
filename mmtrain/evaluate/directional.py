"""The metric of direction (Gal et al. 2022, StyleGAN-NADA): does the picture move the way that the words do?"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.evaluate.cases import Case, Numbers
from mmtrain.evaluate.forgetting import embedded


class Directional:
    """``CLIP direction``: the cosine of (adapted - base) of the clips' embeddings with (with - without the brand's
    words) of the prompts'; 0 for a clip that is the base's own. Asked of prompts with words around them alone.

    Args:
        path: folder or hub id of a CLIP.
    """

    def __init__(self, *, path: str) -> None:
        self.clip, self.name = CLIP(path=path), f"CLIP direction ({Path(path).name})"

    @torch.no_grad()
    def against(self, frames: np.ndarray, base: np.ndarray, case: Case) -> Numbers:
        """The number of frames uint8 ``[t h w c]`` against the base's."""
        if case.plain is None:
            return {self.name: None}
        if np.array_equal(frames, base):
            return {self.name: 0.0}
        seen = embedded(self.clip, frames) - embedded(self.clip, base)
        told, bare = F.normalize(self.clip.embed_text([case.prompt, case.plain]), dim=-1)
        return {self.name: float(F.cosine_similarity(seen, told - bare, dim=-1))}
