"""The vision tower of a CLIP by itself, with its projection: one side of a `Pair`. Each frame is seen alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from mmtrain.adapter.injected import merged
from mmtrain.backbone.clip import pixels_of
from mmtrain.backbone.weights import companion, copy_as, load

OTHERS = ("text_model.", "text_projection.", "logit_scale")


class ClipVision(nn.Module):
    """CLIP's vision tower by hub id or folder, of a whole CLIP or of the tower alone.

    Args:
        path: what `CLIPVisionModelWithProjection.from_pretrained` opens.
        revision: git revision of a hub id.
    """

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        super().__init__()
        self.model: Any = load(CLIPVisionModelWithProjection, path, revision=revision, unused=OTHERS)
        self.processor: Any = companion(CLIPImageProcessorPil, path, revision=revision)
        self.path = path

    @property
    def width(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def num_frames(self) -> int | None:
        stacked = int(self.model.config.num_channels) // 3
        return stacked if stacked > 1 else None

    def forward(self, frames: Tensor) -> Tensor:
        """Frames ``[b t c h w]`` in [-1, 1] → ``[b t d]``; ``[b 1 d]`` of a tower that stacks frames."""
        return self.model(pixel_values=self.pixels(frames)).image_embeds.unflatten(0, (len(frames), -1))

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames as the network takes them."""
        return pixels_of(frames, self.model.config, self.processor, self.path)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        copy_as(merged(self.model), dtype).save_pretrained(folder)
        self.processor.save_pretrained(folder)
