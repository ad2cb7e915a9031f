"""What every objective has in common that compares all samples of a batch with each other.

A batch goes through the towers whole or in pieces. Pieces save memory and nothing else: each is embedded without
keeping activations, all embeddings are compared, and in the backward pass each piece is embedded again (GradCache, Gao
et al. 2021), with the dropout that it had. So the negatives are those of the whole batch, and the gradients too.
"""

import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmtrain import ranks
from mmtrain.batch import Batch, Loss
from mmtrain.errors import Failure, UserError
from mmtrain.objective.tiles import Compared, Names
from mmtrain.rng import Rng, drops_out

MAX_LOG_SCALE = math.log(100.0)
LOOKED_AT = 512  # embeddings of a side on which uniformity is estimated


class WholeBatch(ABC):
    """An objective over the pairs of a batch, on a backbone of two towers.

    The backbone gives ``embed_visual(batch)`` and ``embed_text(captions)``, ``[b d]`` each and not normalised, and the
    scalars ``log_scale`` and ``bias`` (which may be None).

    Args:
        tile: rows of the matrix of similarities that are held at a time. It changes memory and speed alone.
    """

    def __init__(self, *, tile: int = 512) -> None:
        if tile < 1:
            raise UserError("objective.tile", str(tile), "at least 1 row", "leave it at 512")
        self.tile = tile

    @abstractmethod
    def compare(self, backbone: Any, shown: Tensor, said: Tensor, names: Names) -> Compared:
        """The losses of pairs of normalised embeddings ``[b d]``."""

    def __call__(self, backbone: Any, batch: Batch, rng: Rng, pieces: int = 1) -> Loss:
        """Loss per pair ``[b]``.

        Args:
            pieces: in how many the batch goes through the towers.

        Raises:
            UserError: a batch of one pair, an empty caption, widths that differ.
            Failure: an embedding that is not finite.
        """
        _check_batch(batch)
        shown, said = embed(backbone, batch, rng, pieces)
        _check_embeddings(batch, shown, said)
        device = shown.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            shown, said = (F.normalize(side if side.dtype == torch.float64 else side.float()) for side in (shown, said))
            found = self.compare(backbone, shown, said, Names.of(batch.keys, batch.captions, shown.device))
        return Loss(found.loss, {**_geometry(shown.detach(), said.detach()), **_counts(backbone, found)})


def embed(backbone: Any, batch: Batch, rng: Rng, pieces: int) -> tuple[Tensor, Tensor]:
    """Both sides of a batch ``[b d]``, piece by piece."""
    keyed = drops_out(backbone)

    def part(places: slice) -> tuple[Tensor, Tensor]:
        with rng.part(places).dropout() if keyed else nullcontext():
            some = batch.part(places)
            return backbone.embed_visual(some), backbone.embed_text(some.captions)

    if pieces == 1:
        return part(slice(None))
    parts = [checkpoint(part, places, use_reentrant=False) for places in pieces_of(len(batch), pieces)]
    shown, said = (torch.cat(side) for side in zip(*parts, strict=True))
    return shown, said


def pieces_of(count: int, pieces: int) -> list[slice]:
    """``count`` samples in at most so many pieces of one size; the last may be smaller."""
    size = math.ceil(count / pieces)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def limited(log_scale: Tensor) -> Tensor:
    """t, at most ln 100 (Radford et al. 2021); above it gradients pass that would lead back, no others."""
    return _Limit.apply(log_scale)


class _Limit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_scale: Tensor) -> Tensor:
        ctx.save_for_backward(log_scale)
        return log_scale.clamp(max=MAX_LOG_SCALE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (log_scale,) = ctx.saved_tensors
        return grad.where((log_scale < MAX_LOG_SCALE) | (grad > 0), 0.0)


def _check_batch(batch: Batch) -> None:
    if len(batch) * ranks.count() < 2:
        fix = "raise trainer.batch_size to at least 2"
        raise UserError("contrastive objective", "a batch of one pair", "pairs to compare with each other", fix)
    for key, caption in zip(batch.keys, batch.captions, strict=True):
        if not caption.strip():
            fix = "write one, or take the sample out"
            raise UserError(f"sample {key!r}", "an empty caption", "a caption to compare with", fix)


def _check_embeddings(batch: Batch, shown: Tensor, said: Tensor) -> None:
    """On an accelerator a look at the numbers would make each step wait: there the log stops at a loss that is not
    finite (train/callbacks.py)."""
    if shown.shape != said.shape:
        came = f"{shown.shape[-1]} wide for what is shown, {said.shape[-1]} for what is said"
        raise UserError("towers", came, "one width", "add a projection to one of them")
    if shown.device.type == "cpu":
        for side, rows in (("shown", shown), ("said", said)):
            bad = (~rows.isfinite()).any(1).nonzero().flatten().tolist()
            if bad:
                came = f"the embedding of what is {side} is not finite"
                keys = ", ".join(repr(batch.keys[i]) for i in bad[:8])
                raise Failure(f"sample {keys}", came, "numbers", "lower optim.lr, or look at these samples")


@torch.no_grad()
def _geometry(shown: Tensor, said: Tensor) -> dict[str, Tensor]:
    """Alignment E‖x − y‖² of pairs and uniformity log E exp(−2‖x − x′‖²) of both sides (Wang & Isola 2020)."""
    return {
        "alignment": (shown - said).square().sum(1).mean(),
        "uniformity": (_uniformity(shown[:LOOKED_AT]) + _uniformity(said[:LOOKED_AT])) / 2,
    }


def _uniformity(rows: Tensor) -> Tensor:
    count = len(rows)
    if count < 2:
        return rows.new_zeros(())
    near = (4 * (rows @ rows.T - 1)).exp()  # −2‖x − x′‖² = 4(x·x′ − 1) on the sphere
    return ((near.sum() - near.diagonal().sum()) / (count * (count - 1))).log()


@torch.no_grad()
def _counts(backbone: Any, found: Compared) -> dict[str, Tensor]:
    logs = {"recall@1": found.hit.mean(), "negatives": found.negatives.mean()}
    logs["scale"] = limited(backbone.log_scale).exp().reshape(())
    return logs if backbone.bias is None else {**logs, "bias": backbone.bias.detach().clone().reshape(())}
