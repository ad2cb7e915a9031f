"""Textual inversion (Gal et al. 2023): new words of a text tower, whose embeddings are all that trains.

A caption with the word reads, at the start, as if a known word stood there, bit for bit; captions without it read as
they always did. Folding (`injected.merged`) leaves a plain, longer table of embeddings.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.adapter.full import load_weights
from mmtrain.errors import UserError


class Learned(nn.Module):
    """A frozen table of embeddings, and rows behind it that train.

    Args:
        table: of the text tower, ``[n d]``.
        rows: the new ones at the start, ``[k d]``.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.weight, self.learned = table.weight, nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, torch.cat([self.weight, self.learned]))

    def plain(self) -> nn.Embedding:
        """One table of all rows."""
        return nn.Embedding.from_pretrained(torch.cat([self.weight, self.learned]).detach().clone())


class Words(nn.Module):
    """New words, one vector each.

    Args:
        words: as captions hold them, such as ``<zwx>``.
        like: for each a word that the tower knows as one token: its embedding is where the new one starts.
    """

    def __init__(self, *, words: list[str], like: list[str]) -> None:
        super().__init__()
        if not words or len(words) != len(like) or len(set(words)) != len(words):
            came = f"{len(words)} words, {len(like)} to start from"
            raise UserError("adapter words", came, "one known word for each new one, all different", "correct them")
        self.words, self.like = words, like
        self._rows: nn.Parameter | None = None

    def attach(self, backbone: Any) -> None:
        """Add the words to the tokenizer, and their rows to the tower's table.

        Raises:
            UserError: a family that does not read prompts through one CLIP tower, a word that is known already, one to
                start from that is not one token.
        """
        if not hasattr(backbone, "learned") or hasattr(backbone, "text_encoder_2"):
            came = f"a {type(backbone).__name__}"  # where two towers read, one pools at the highest token: a new word
            raise UserError("adapter words", came, "Stable Diffusion or AnimateDiff", "choose another adapter")
        table = backbone.text_encoder.get_input_embeddings()
        starts = self._added(backbone.tokenizer, len(table.weight))
        learned = Learned(table, table.weight[starts].detach().clone())
        backbone.text_encoder.set_input_embeddings(learned)
        self._rows = learned.learned
        backbone.learned = [*backbone.learned, *self.words]

    def _added(self, tokenizer: Any, rows: int) -> list[int]:
        """Rows of the words to start from; an outline has no tokenizer, and no numbers either."""
        if tokenizer is None:
            return [0] * len(self.words)
        known, new = ([tokenizer(w, add_special_tokens=False).input_ids for w in ws] for ws in (self.like, self.words))
        for word, ids in zip(self.like, known, strict=True):
            if len(ids) != 1:
                raise UserError("adapters.words.like", f"{word!r}, {len(ids)} tokens", "one token", "choose another")
        taken = [word for word, ids in zip(self.words, new, strict=True) if len(ids) == 1]
        if taken:
            raise UserError("adapters.words.words", f"{taken[0]!r}, a word already", "a new one", "choose another")
        tokenizer.add_tokens(self.words)
        given = tokenizer.convert_tokens_to_ids(self.words)
        if given != list(range(rows, rows + len(self.words))):
            came = f"numbers {given} for a table of {rows} rows"
            raise UserError("adapter words", came, "a tokenizer as long as its table", "choose another model")
        return [ids[0] for ids in known]

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        assert self._rows is not None, "attach first"
        return {"words": self._rows}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self.named_weights(), weights, "adapter words")


def holds(caption: str, words: Sequence[str]) -> bool:
    """Whether a caption holds one of the words."""
    return any(word in caption for word in words)
