"""The text side that every family shares: tokenizer and frozen CLIP text tower, with a memo of what was encoded.

Image towers and whole CLIP models are in `clip.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from mmtrain.errors import UserError

BOS, EOS, END = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass
class TextFeatures:
    """What a text tower says of captions: every token, and one vector in the shared space."""

    tokens: Tensor  # [b l d], of the layer that was asked for
    mask: Tensor  # [b l], true on tokens of the caption, its begin and its end
    embeds: Tensor  # [b d_shared], not normalised
    words: Tensor  # [b l d], the words' own embeddings, without their places

    def to(self, device: torch.device | str) -> "TextFeatures":
        return TextFeatures(*(part.to(device) for part in (self.tokens, self.mask, self.embeds, self.words)))

    def rows(self, chosen: Tensor) -> "TextFeatures":
        return TextFeatures(*(part[chosen] for part in (self.tokens, self.mask, self.embeds, self.words)))


class Memo:
    """Remembers what a frozen text encoder says of each caption.

    Each is read alone, and in 32 bits also where a step is computed in 16: else what is remembered would depend on
    which others were new, or on who asked first, and a resumed run, which remembers none, would leave the uninterrupted
    one.

    Args:
        read: a caption → tensors without batch axis, the same shapes for every caption.
        limit: captions kept.
    """

    def __init__(self, read: Callable[[str], tuple[Tensor, ...]], limit: int = 50_000) -> None:
        self.read, self.limit = read, limit
        self.known: dict[str, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], device: torch.device | str) -> list[Tensor]:
        """What ``read`` gives, stacked over captions."""
        if len(self.known) > self.limit:
            self.known.clear()
        kind = torch.device(device).type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            for caption in dict.fromkeys(captions):
                if caption not in self.known:
                    self.known[caption] = tuple(part.cpu() for part in self.read(caption))
        columns = zip(*(self.known[caption] for caption in captions), strict=True)
        return [torch.stack(column).to(device) for column in columns]


def kept(captions: Sequence[str], drop: Tensor) -> list[str]:
    """The captions, those with a true in ``drop [b]`` replaced by the empty one."""
    return ["" if dropped else caption for caption, dropped in zip(captions, drop.tolist(), strict=True)]


class TextTower(nn.Module):
    """A frozen CLIP text tower that encodes each distinct caption once.

    Args:
        tokenizer: CLIP tokenizer; its ``model_max_length`` is the limit of a caption.
        model: `CLIPTextModelWithProjection`.
        layer: whose output the tokens are: 0 the words' embeddings without their places, 1 the first layer …, or −1 the
            last, after the final norm.
    """

    def __init__(self, *, tokenizer: Any, model: nn.Module, layer: int = -1) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.model: Any = model
        config: Any = model.config
        layers = int(config.num_hidden_layers)
        if not -1 <= layer <= layers:
            raise UserError("backbone.text_layer", str(layer), f"−1, or 0 to {layers}", "choose one of them")
        self.layer = layer
        self._memo = Memo(self._read)

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def words(self) -> Tensor:
        """The embeddings of the whole vocabulary, ``[n d]``."""
        return self.model.get_input_embeddings().weight.detach()

    @property
    def shared_width(self) -> int:
        return int(self.model.config.projection_dim)

    def forward(self, captions: Sequence[str]) -> TextFeatures:
        """Features of each caption; frozen, so without gradients."""
        return TextFeatures(*self._memo(captions, self.model.device))

    def _read(self, caption: str) -> tuple[Tensor, ...]:
        ids, mask = tokenize(self.tokenizer, [caption], self.model.device)
        out = self.model(input_ids=ids, output_hidden_states=True)
        words = self.model.get_input_embeddings()(ids)
        by_layer = (words, *out.hidden_states[1:], out.last_hidden_state)  # −1: after the final norm
        tokens = by_layer[self.layer]
        return tokens[0], mask[0], out.text_embeds[0], words[0]


def tokenize(tokenizer: Any, captions: Sequence[str], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids ``[b l]`` padded to the tower's limit, and the mask of what is not padding.

    Raises:
        UserError: a caption has more tokens than the tower takes; nothing is cut silently.
    """
    limit = tokenizer.model_max_length
    refuse_long(tokenizer, captions, limit)
    padded = tokenizer(list(captions), padding="max_length", max_length=limit, return_tensors="pt")
    return padded.input_ids.to(device), padded.attention_mask.bool().to(device)


def refuse_long(tokenizer: Any, captions: Sequence[str], limit: int) -> None:
    """Raises UserError for a caption of more than ``limit`` tokens, begin and end included."""
    for caption, ids in zip(captions, tokenizer(list(captions)).input_ids, strict=True):
        if len(ids) > limit:
            raise UserError(
                f"prompt “{caption[:60]}{'…' if len(caption) > 60 else ''}”",
                f"{len(ids)} tokens came",
                f"at most {limit} fit the text tower, begin and end included",
                "shorten the prompt",
            )


def word_tokenizer(words: Sequence[str], max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of each given word; any other text falls apart into bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = word_merges(words)
    tokens = [*alphabet, *(letter + END for letter in alphabet), *(first + second for first, second in merges)]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def word_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) until every word is one token: the most frequent pair first, of equals
    the first in the alphabet. The tokenizers library's own trainer breaks ties by the order of a hash map, so that two
    runs of it number the tokens differently."""
    pieces = [[*word[:-1], word[-1] + END] for word in sorted(set(words))]
    merges = []
    while any(len(word) > 1 for word in pieces):
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def t5_tokenizer(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """One token a word, T5's way: no begin, an end after the last."""
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(words)])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_length
    )
