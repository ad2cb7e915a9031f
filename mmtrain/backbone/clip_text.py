"""The text tower of a CLIP by itself, with its projection: one side of a `Pair`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from mmtrain.adapter.injected import merged
from mmtrain.backbone.text import word_tokenizer
from mmtrain.backbone.weights import companion, copy_as, freeze, load

OTHERS = ("vision_model.", "visual_projection.", "logit_scale")


class ClipText(nn.Module):
    """CLIP's text tower by hub id or folder, of a whole CLIP or of the tower alone.

    Args:
        path: what `CLIPTextModelWithProjection.from_pretrained` opens.
        revision: git revision of a hub id.
    """

    ending = ""

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        model = load(CLIPTextModelWithProjection, path, revision=revision, unused=OTHERS)
        self._hold(model, companion(CLIPTokenizer, path, revision=revision), path)

    def _hold(self, model: nn.Module, tokenizer: Any, path: str) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer, self.path = tokenizer, path

    @property
    def width(self) -> int:
        return int(self.model.config.projection_dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids ``[b l]`` → projected embeddings ``[b d]``; a causal tower needs no mask behind its end."""
        return self.model(input_ids=ids).text_embeds

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        copy_as(merged(self.model), dtype).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def fresh(*, words: list[str], max_tokens: int, config: dict[str, Any]) -> ClipText:
    """An untrained tower.

    Args:
        words: words that are one token each.
        max_tokens: longest caption in tokens, begin and end included.
        config: arguments of `CLIPTextConfig`; ``projection_dim`` is the width of its embeddings.
    """
    tokenizer = word_tokenizer(words, max_tokens)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    places = {"vocab_size": len(tokenizer), "max_position_embeddings": max_tokens}
    made = CLIPTextConfig(**config, **ids, **places, pad_token_id=tokenizer.pad_token_id)
    tower = ClipText.__new__(ClipText)
    tower._hold(freeze(CLIPTextModelWithProjection(made)), tokenizer, "fresh")
    return tower
