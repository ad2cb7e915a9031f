"""A GPT-style language model as text tower: the last layer's state at a caption's last token, one side of a `Pair`.

Reads left to right, so that only the last token has seen the whole caption (as Neelakantan et al. 2022 pool it).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

from mmtrain.adapter.injected import merged
from mmtrain.backbone.text import word_tokenizer
from mmtrain.backbone.weights import companion, copy_as, freeze, load
from mmtrain.errors import UserError


class Language(nn.Module):
    """A causal language model by hub id or folder, without its head.

    Args:
        path: what transformers' `AutoModel` opens: openai-community/gpt2, a Llama, a Qwen …
        revision: git revision of a hub id.
        max_tokens: limit of a caption, its end included; None: the tokenizer's own.
    """

    def __init__(self, *, path: str, revision: str | None = None, max_tokens: int | None = None) -> None:
        model = load(AutoModel, path, revision=revision, unused=("lm_head.",))
        tokenizer = companion(AutoTokenizer, path, revision=revision)
        if max_tokens is not None:
            tokenizer.model_max_length = max_tokens
        self._hold(model, tokenizer, path)

    def _hold(self, model: nn.Module, tokenizer: Any, path: str) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer, self.path = tokenizer, path
        if tokenizer.eos_token is None or tokenizer.model_max_length > 100_000:
            came = f"end {tokenizer.eos_token}, limit {tokenizer.model_max_length:.3g}"
            raise UserError(f"backbone {path}", came, "a tokenizer with both", "set max_tokens, or take another model")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        self.ending = "" if tokenizer("a").input_ids[-1] == tokenizer.eos_token_id else tokenizer.eos_token

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids ``[b l]`` and mask ``[b l]`` → the state ``[b d]`` at each caption's last token."""
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        copy_as(merged(self.model), dtype).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def fresh(*, words: list[str], max_tokens: int, config: dict[str, Any]) -> Language:
    """An untrained GPT-2.

    Args:
        words: words that are one token each.
        max_tokens: longest caption in tokens, begin and end included.
        config: arguments of `GPT2Config`.
    """
    tokenizer = word_tokenizer(words, max_tokens)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made = GPT2Config(**config, **ids, vocab_size=len(tokenizer), n_positions=max_tokens)
    tower = Language.__new__(Language)
    tower._hold(freeze(GPT2Model(made)), tokenizer, "fresh")
    return tower
