"""Text beside pictures or clips in one space: what every such backbone can do, whatever its towers are.

A *tower* gives features and is frozen on arrival. Adapters may stand inside a tower, where its network shows them its
layers, or on top of it: then the tower's features can be cached, and the tower need not run (`encode`, `recall`).
The families are `clip.py` and `siglip.py`; `pair.py` joins two towers that were never trained together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmtrain.adapter.bottleneck import bound
from mmtrain.backbone.text import tokenize
from mmtrain.backbone.weights import digest
from mmtrain.batch import Batch
from mmtrain.errors import UserError

FEATURES = "visual_features"
LongCaptions = Literal["refuse", "truncate"]
AT_ONCE = 64  # captions that go through a tower together when a table of them is made


class Aligned(nn.Module, ABC):
    """A text and a visual tower whose embeddings are compared.

    Args:
        tokenizer: of the text tower; its ``model_max_length`` is the limit of a caption.
        long_captions: what is done with a caption beyond it: ``refuse`` stops, ``truncate`` cuts it and counts it in
            ``truncated``.

    Attributes:
        over_time: adapters between features ``[b n d]`` and their mean over n.
        visual_top, text_top: adapters behind that mean and behind the text's features, ``[b d]`` each.
        bias: SigLIP's b, one number; None where the model has none.
        truncated: captions that were cut.
        ending: what a caption is told to end with, for tokenizers that add no end of their own.
    """

    stored = torch.float32
    """What a cache of ``encode`` keeps: features are small, and a loss from the cache is the loss without it."""

    def __init__(self, *, tokenizer: Any, long_captions: LongCaptions) -> None:
        super().__init__()
        self.tokenizer, self.long_captions = tokenizer, long_captions
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)
        self.over_time, self.visual_top, self.text_top = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.truncated: set[str] = set()
        self.ending = ""
        self._table: dict[str, Tensor] = {}

    # what a family says of itself -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module that adapters inside the towers are attached to."""

    @property
    @abstractmethod
    def text_tower(self) -> list[nn.Module]:
        """The modules between token ids and text features."""

    @property
    @abstractmethod
    def visual_tower(self) -> list[nn.Module]:
        """The modules between pixels and visual features."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """Widths of text features and of visual features."""

    @property
    @abstractmethod
    def num_frames(self) -> int | None:
        """Of a clip, for a tower that wants that many; None where any number will do."""

    @property
    @abstractmethod
    def log_scale(self) -> nn.Parameter:
        """Logarithm of the temperature's inverse, t in s = eᵗ; one number."""

    @property
    @abstractmethod
    def base(self) -> dict[str, str]:
        """Path and digest of the frozen weights."""

    @abstractmethod
    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids ``[b l]`` and mask ``[b l]`` (true where no padding is) → ``[b d]``."""

    @abstractmethod
    def visual_features(self, frames: Tensor) -> Tensor:
        """Frames ``[b t c h w]`` in [-1, 1] → ``[b n d]``: one feature a frame, or one of the whole clip (n = 1)."""

    @abstractmethod
    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """The model in its library's own layout, LoRA folded in."""

    # embeddings, not normalised ---------------------------------------------------------------------------------------

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Embeddings ``[b d]`` of captions.

        Raises:
            UserError: an empty caption, one beyond the limit that is not to be cut, or towers of different widths.
        """
        self._joined()
        if self._table and self.text_is_frozen and all(caption in self._table for caption in captions):
            features = torch.stack([self._table[caption] for caption in captions]).to(self.log_scale.device)
            return _through(self.text_top, features)
        return _through(self.text_top, self.text_features(*self.tokens(captions)))

    def embed_visual(self, batch: Batch) -> Tensor:
        """Embeddings ``[b d]`` of a batch's pixels, or of the features that a cache holds of them."""
        return self.embed_encoded(batch.encoded) if batch.frames is None else self.embed_videos(batch.frames)

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings ``[b d]`` of images ``[b c h w]`` in [-1, 1]."""
        return self.embed_videos(images[:, None])

    def embed_videos(self, frames: Tensor) -> Tensor:
        """Embeddings ``[b d]`` of clips ``[b t c h w]`` in [-1, 1]; an image is a clip of one frame.

        Raises:
            UserError: the tower wants another number of frames, or widths differ.
        """
        return self._topped(self.visual_features(frames))

    def embed_encoded(self, encoded: dict[str, Tensor]) -> Tensor:
        """Embeddings ``[b d]`` of what `encode` gave.

        Raises:
            UserError: the cache holds something else.
        """
        if FEATURES not in encoded:
            came = f"encoder outputs {', '.join(encoded) or 'of no name'}"
            raise UserError("cached features", came, FEATURES, "name another cache, or encode with this backbone")
        return self._topped(encoded[FEATURES])

    def _topped(self, features: Tensor) -> Tensor:
        self._joined()
        return _through(self.visual_top, _through(self.over_time, features).mean(1))

    @property
    def joined_widths(self) -> tuple[int, int]:
        """Widths of text and of visual embeddings, with what stands on top of the towers by now."""
        text, visual = self.widths
        for top in self.text_top:
            text = top.out_features if isinstance(top, nn.Linear) else text
        for top in self.visual_top:
            visual = top.out_features if isinstance(top, nn.Linear) else visual
        return text, visual

    def _joined(self) -> None:
        """Refuse towers whose embeddings cannot be compared."""
        text, visual = self.joined_widths
        if text != visual:
            came = f"text embeddings of width {text}, visual ones of width {visual}"
            fix = "add `- /adapter@adapters.projection: projection` to the recipe's defaults"
            raise UserError("towers", came, "one width, or a projection", fix)

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[b l]`` of captions, as `text_features` takes them. Raises UserError."""
        if empty := [i for i, caption in enumerate(captions) if not caption.strip()]:
            came = f"caption {empty[0] + 1} of {len(captions)} is empty"
            raise UserError("captions", came, "words to align with", "write a caption for it, or leave the sample out")
        if self.long_captions == "truncate":
            captions = [self._cut(caption) for caption in captions]
        told = [caption + self.ending for caption in captions]
        return tokenize(self.tokenizer, told, self.log_scale.device)

    def _cut(self, caption: str) -> str:
        """A caption's longest beginning of whole words that fits."""
        limit, words = self.tokenizer.model_max_length, caption.split()
        while len(words) > 1 and self._length(" ".join(words)) > limit:
            self.truncated.add(caption)
            words.pop()
        return " ".join(words) if caption in self.truncated else caption

    def _length(self, caption: str) -> int:
        return len(self.tokenizer(caption + self.ending).input_ids)

    # the cache --------------------------------------------------------------------------------------------------------

    @property
    def text_is_frozen(self) -> bool:
        return _is_frozen(self.text_tower)

    @property
    def encoder_id(self) -> str:
        """Digest of the visual tower.

        Raises:
            UserError: something in it trains, so that what it gives cannot be cached.
        """
        if not _is_frozen(self.visual_tower):
            came = "an adapter inside the visual tower"
            raise UserError("cache", came, "adapters on top of it alone", "set cache=null, or train others")
        return digest(*self.visual_tower)

    @property
    def text_id(self) -> str:
        """Digest of the text tower and of what is done with long captions."""
        return f"{digest(*self.text_tower)}-{self.tokenizer.model_max_length}-{self.long_captions}"

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """What the visual tower says of frames ``[b t c h w]``: ``visual_features [b n d]``."""
        return {FEATURES: self.visual_features(frames)}

    @torch.no_grad()
    def table(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> Tensor:
        """Text features ``[n d]`` of captions; in groups of a fixed size, so that they are the same on every run."""
        rows = []
        for start in range(0, len(captions), AT_ONCE):
            rows.append(self.text_features(*self.tokens(captions[start : start + AT_ONCE])).cpu())
            progress(min(start + AT_ONCE, len(captions)), len(captions))
        return torch.cat(rows)

    def recall(self, captions: Sequence[str], table: Tensor) -> None:
        """Take these features ``[n d]`` for these captions from now on, as long as the text tower is frozen."""
        if self.long_captions == "truncate":
            for caption in captions:
                self._cut(caption)  # to be counted, though their features are there already
        self._table |= dict(zip(captions, table, strict=True))


def _through(tops: Iterable[nn.Module], features: Tensor) -> Tensor:
    for top in tops:
        features = top(features)
    return features


def _is_frozen(tower: Iterable[nn.Module]) -> bool:
    """Whether nothing in a tower trains or was put there to train."""
    return not any(bound(part) or any(w.requires_grad for w in part.parameters()) for part in tower)
