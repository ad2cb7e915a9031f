"""TimeSformer: attention over time, then over space, in every layer (Bertasius et al. 2021): a `Pair`'s video tower."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, TimesformerConfig, TimesformerModel

from mmtrain.adapter.injected import merged
from mmtrain.backbone.clip import image_processor, prepare
from mmtrain.backbone.weights import companion, copy_as, freeze, load
from mmtrain.errors import UserError


class TimeSformer(nn.Module):
    """A TimeSformer by hub id or folder, without its classifier.

    Args:
        path: what `TimesformerModel.from_pretrained` opens, such as facebook/timesformer-base-finetuned-k400.
        revision: git revision of a hub id.
    """

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        model = load(TimesformerModel, path, revision=revision, unused=("classifier.",))
        self._hold(model, companion(CLIPImageProcessorPil, path, revision=revision), path)

    def _hold(self, model: nn.Module, processor: Any, path: str) -> None:
        super().__init__()
        self.model: Any = model
        self.processor, self.path = processor, path

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def num_frames(self) -> int | None:
        return int(self.model.config.num_frames)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames ``[b t c h w]`` in [-1, 1] → the clip's class token ``[b 1 d]``.

        Raises:
            UserError: another number of frames than the tower was made for.
        """
        config, t = self.model.config, frames.shape[1]
        if t != config.num_frames:
            came = "an image" if t == 1 else f"clips of {t} frames"
            fix = f"set dataset.num_frames={config.num_frames}"
            raise UserError(f"backbone {self.path}", came, f"clips of {config.num_frames} frames", fix)
        return self.model(pixel_values=self.pixels(frames)).last_hidden_state[:, :1]

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames as the network takes them."""
        side = self.model.config.image_size
        return prepare(frames.flatten(0, 1), side, self.processor).unflatten(0, frames.shape[:2])

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        copy_as(merged(self.model), dtype).save_pretrained(folder)
        self.processor.save_pretrained(folder)


def fresh(*, config: dict[str, Any]) -> TimeSformer:
    """An untrained one: ``config`` holds arguments of `TimesformerConfig`. Its places in space and time, which the
    library starts at zero, are drawn, so that the order of frames is seen from the first step on."""
    made = TimesformerConfig(**config)
    model = TimesformerModel(made)
    for places in (model.embeddings.position_embeddings, model.embeddings.time_embeddings):
        nn.init.normal_(places, std=made.initializer_range)
    tower = TimeSformer.__new__(TimeSformer)
    tower._hold(freeze(model), image_processor(made), "fresh")
    return tower
