"""CLIP: a text and an image tower in one space (Radford et al. 2021), whole, as a Backbone of its own.

Of a clip it sees every frame, and their embeddings are averaged (CLIP4Clip's parameter-free similarity, Luo et al.
2021); `adapter/temporal.py` goes between. A vision tower of 3·k channels sees k frames at once, stacked as channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from mmtrain.backbone.text import word_tokenizer
from mmtrain.backbone.two_towers import TwoTowers
from mmtrain.backbone.weights import freeze
from mmtrain.errors import UserError


class CLIP(TwoTowers):
    """CLIP by hub id or local folder, frozen on arrival."""

    classes = (CLIPModel, CLIPTokenizer, CLIPImageProcessorPil)

    @property
    def text_tower(self) -> list[nn.Module]:
        return [self.model.text_model, self.model.text_projection]

    @property
    def visual_tower(self) -> list[nn.Module]:
        return [self.model.vision_model, self.model.visual_projection]

    @property
    def widths(self) -> tuple[int, int]:
        return self.model.projection_dim, self.model.projection_dim

    @property
    def num_frames(self) -> int | None:
        stacked = self.model.config.vision_config.num_channels // 3
        return stacked if stacked > 1 else None

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

    def visual_features(self, frames: Tensor) -> Tensor:
        """One feature of each frame ``[b t d]``; of a tower that sees k frames stacked, one of the clip ``[b 1 d]``."""
        pixels = pixels_of(frames, self.model.config.vision_config, self.processor, self.path)
        features = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return features.unflatten(0, (len(frames), -1))


def pixels_of(frames: Tensor, vision: Any, processor: Any, path: str) -> Tensor:
    """Frames ``[b t c h w]`` in [-1, 1] as a CLIP vision tower takes them, ``[b·n c h w]``: each by itself, or as many
    as it stacks, spread over the clip.

    Raises:
        UserError: fewer frames than the tower stacks.
    """
    stacked, t = vision.num_channels // 3, frames.shape[1]
    prepared = prepare(frames.flatten(0, 1), vision.image_size, processor)
    if stacked == 1:
        return prepared
    if t < stacked:
        fix = "give it clips: set dataset.num_frames"
        raise UserError(f"backbone {path}", f"{t} frame(s)", f"at least {stacked}, which it sees at once", fix)
    chosen = torch.linspace(0, t - 1, stacked).round().long()
    return prepared.unflatten(0, (len(frames), t))[:, chosen].flatten(1, 2)


def prepare(images: Tensor, side: int, processor: Any) -> Tensor:
    """Images ``[b c h w]`` in [-1, 1] → a tower's pixels: bicubic to its size, its mean and deviation."""
    unit = images / 2 + 0.5
    if unit.shape[-2:] != (side, side):
        unit = _resized(unit, side)
    mean, std = (torch.tensor(v, device=unit.device).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return unit.sub_(mean).div_(std)  # in place: a batch at a tower's size is fresh memory each time


def _resized(unit: Tensor, side: int) -> Tensor:
    """Images in [0, 1] at ``side`` × ``side``, bicubic.

    In levels of eight bits, as transformers' processor has it from Pillow (one value in a hundred is a level or two
    off), and several times as fast as in floats. With gradients, where a value is not finite, and on other devices than
    a CPU, in floats.
    """
    how: dict[str, Any] = {"size": (side, side), "mode": "bicubic", "antialias": True}
    if unit.device.type != "cpu" or unit.requires_grad or not unit.isfinite().all():
        return F.interpolate(unit, **how).clamp_(0, 1)
    levels = F.interpolate((unit * 255).round_().clamp_(0, 255).byte(), **how)
    return levels.to(unit.dtype).div_(255)


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
    model = CLIPModel(config)
    spread_words(model.text_model.embeddings)
    clip = CLIP.__new__(CLIP)
    clip._hold(freeze(model), tokenizer, image_processor(config.vision_config), "fresh", "refuse")
    return clip


def spread_words(embeddings: Any) -> None:
    """Sets a fresh text tower's words far apart: tokens of deviation 0.4 at places of 0.1.

    At the library's 0.02 a word is a fiftieth of what the first attention adds to it: words that pictures tell apart
    with effort (*circle*, *square*) came out of the trained tower the same, and no denoiser could be told the one from
    the other.
    """
    nn.init.normal_(embeddings.token_embedding.weight, std=0.4)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.1)


def image_processor(vision: Any) -> CLIPImageProcessorPil:
    """CLIP's own mean and deviation, for a vision tower's size."""
    crop = {"height": vision.image_size, "width": vision.image_size}
    return CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=crop)
