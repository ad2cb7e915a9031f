"""CLIP: a text and an image tower in one space (Radford et al. 2021), whole, as a Backbone of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from mmtrain.backbone.text import tokenize, word_tokenizer
from mmtrain.backbone.weights import copy_as, digest, freeze, load, write_manifest


class CLIP(nn.Module):
    """CLIP by hub id or local folder, frozen on arrival.

    Args:
        path: hub id or folder that `CLIPModel.from_pretrained` opens.
        revision: git revision of a hub id.
    """

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        super().__init__()
        self._hold(
            load(CLIPModel, path, revision=revision),
            CLIPTokenizer.from_pretrained(path, revision=revision),
            CLIPImageProcessorPil.from_pretrained(path, revision=revision),
            path,
        )

    def _hold(self, model: nn.Module, tokenizer: Any, processor: Any, path: str) -> None:
        self.model: Any = model
        self.tokenizer, self.processor, self.path = tokenizer, processor, path

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def base(self) -> dict[str, str]:
        return {"path": self.path, "digest": digest(self.model)}

    @property
    def encoder_id(self) -> str:
        return digest(self.model)

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of the temperature's inverse, t in s = eᵗ."""
        return self.model.logit_scale

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Embeddings ``[b d]`` of captions, not normalised."""
        ids, _ = tokenize(self.tokenizer, captions, self.model.device)
        return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings ``[b d]`` of images ``[b c h w]`` in [-1, 1], not normalised."""
        pixels = prepare(images, self.model.config.vision_config.image_size, self.processor)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Mean embedding of a clip's frames: ``image_embeds [b d]``."""
        b, t = frames.shape[:2]
        return {"image_embeds": self.embed_images(frames.flatten(0, 1)).unflatten(0, (b, t)).mean(1)}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A folder that `CLIPModel`, `CLIPTextModel` and `CLIPVisionModel` open."""
        copy_as(self.model, dtype).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_manifest(folder)


def prepare(images: Tensor, side: int, processor: Any) -> Tensor:
    """Images ``[b c h w]`` in [-1, 1] → the tower's pixels: bicubic to its size, its mean and deviation."""
    unit = images / 2 + 0.5
    if unit.shape[-2:] != (side, side):
        unit = F.interpolate(unit, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v, device=unit.device).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return (unit - mean) / std


def fresh(*, words: list[str], max_tokens: int, text: dict[str, Any], vision: dict[str, Any], width: int) -> CLIP:
    """An untrained CLIP with the given towers, to be pretrained with `adapter=full`.

    Args:
        words: words that are one token each.
        max_tokens: longest caption in tokens, begin and end included.
        text, vision: arguments of `CLIPTextConfig` and `CLIPVisionConfig`.
        width: of the shared space.
    """
    tokenizer = word_tokenizer(words, max_tokens)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    config = CLIPConfig(
        text_config={
            **text,
            **ids,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_tokens,
            "projection_dim": width,
        },
        vision_config={**vision, "projection_dim": width},
        projection_dim=width,
    )
    clip = CLIP.__new__(CLIP)
    nn.Module.__init__(clip)
    side = {"shortest_edge": config.vision_config.image_size}
    crop = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    clip._hold(freeze(CLIPModel(config)), tokenizer, CLIPImageProcessorPil(size=side, crop_size=crop), "fresh")
    return clip
