"""SigLIP: a text and an image tower in one space, made for the sigmoid loss (Zhai et al. 2023), as a Backbone.

It has a bias beside the temperature. Of a clip it sees every frame; their embeddings are averaged.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from mmtrain.backbone.clip import prepare
from mmtrain.backbone.text import word_tokenizer
from mmtrain.backbone.two_towers import TwoTowers
from mmtrain.backbone.weights import freeze


class SigLIP(TwoTowers):
    """SigLIP by hub id or local folder, frozen on arrival."""

    classes = (SiglipModel, AutoTokenizer, SiglipImageProcessorPil)

    def _hold(self, model: Any, tokenizer: Any, *more: Any) -> None:
        super()._hold(model, tokenizer, *more)
        self.bias = model.logit_bias
        tokenizer.model_max_length = model.config.text_config.max_position_embeddings  # what it was trained with

    @property
    def text_tower(self) -> list[nn.Module]:
        return [self.model.text_model]

    @property
    def visual_tower(self) -> list[nn.Module]:
        return [self.model.vision_model]

    @property
    def widths(self) -> tuple[int, int]:
        return self.model.config.text_config.projection_size, self.model.config.vision_config.hidden_size

    @property
    def num_frames(self) -> int | None:
        return None

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The pooled last place. It was trained without a mask on captions padded to the limit, and gets that."""
        return self.model.text_model(input_ids=ids).pooler_output

    def visual_features(self, frames: Tensor) -> Tensor:
        pixels = prepare(frames.flatten(0, 1), self.model.config.vision_config.image_size, self.processor)
        return self.model.vision_model(pixel_values=pixels).pooler_output.unflatten(0, (len(frames), -1))


def fresh(
    *,
    words: list[str],
    max_tokens: int,
    text: dict[str, Any],
    vision: dict[str, Any],
    log_scale: float,
    bias: float,
) -> SigLIP:
    """An untrained SigLIP with the given towers.

    Args:
        words: words that are one token each.
        max_tokens: places of a caption, padding included.
        text, vision: arguments of `SiglipTextConfig` and `SiglipVisionConfig`, of one ``hidden_size``.
        log_scale, bias: at the start; ln 10 and −10 in the paper.
    """
    tokenizer = word_tokenizer(words, max_tokens)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    places = {"max_position_embeddings": max_tokens, "vocab_size": len(tokenizer)}
    config = SiglipConfig(
        text_config={**text, **ids, **places, "pad_token_id": tokenizer.pad_token_id}, vision_config=vision
    )
    model = SiglipModel(config)
    nn.init.constant_(model.logit_scale, log_scale)
    nn.init.constant_(model.logit_bias, bias)
    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    siglip = SigLIP.__new__(SigLIP)
    siglip._hold(freeze(model), tokenizer, SiglipImageProcessorPil(size=side), "fresh", "refuse")
    return siglip
