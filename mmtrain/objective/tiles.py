"""Losses over all pairs of a batch, one tile of rows at a time and over all ranks, with gradients that are exact.

The matrix of similarities ``[B B]`` is never held: the forward pass keeps a logarithm of a sum for each row and column,
the backward pass computes each tile again. So memory is linear in the batch; the price is four matrix products where
autograd makes three.

Over several ranks each holds its rows of ``first`` and gathers ``second``; the sums over a column are put together from
all ranks. The gradient of ``first`` is then complete where it is computed, that of ``second`` is summed over ranks and
given back to its owner. A rank returns the losses of its own pairs, with the gradients of all ranks' losses summed, so
that an average over ranks (which DDP takes) gives the gradient of the mean over the whole batch. Of the temperature and
the bias each rank has the part of its own rows: the same average makes it whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain import ranks
from mmtrain.rng import key


@dataclass(frozen=True)
class Names:
    """Who the pairs of a batch are: a number for what is shown and one for what is said, int64 ``[n]`` each.

    Row i and column j are a positive pair when they share either: the same picture under two captions, or one caption
    of two pictures.
    """

    shown: Tensor
    said: Tensor

    @classmethod
    def of(cls, keys: list[str], captions: list[str], device: torch.device) -> "Names":
        shown, said = (torch.tensor([key(word) for word in words], device=device) for words in (keys, captions))
        return cls(shown, said)

    @classmethod
    def apart(cls, count: int, device: torch.device) -> "Names":
        """Names of pairs that have nothing in common with each other."""
        numbers = torch.arange(count, device=device) + ranks.index() * count
        return cls(numbers, numbers)


@dataclass(frozen=True)
class _Tile:
    rows: slice
    cosines: Tensor  # [t N]
    own: tuple[Tensor, Tensor]  # where each row meets the other half of its own pair
    others: Tensor  # bool [t N]: positive pairs that are not a row's own


def _tiles(first: Tensor, every: Tensor, names: Names, every_names: Names, size: int) -> Iterator[_Tile]:
    """Tiles of first·everyᵀ; ``every`` holds the second halves of all ranks."""
    start = ranks.index() * len(first)
    for i in range(0, len(first), size):
        rows = slice(i, min(i + size, len(first)))
        place = torch.arange(rows.stop - i, device=first.device)
        own = (place, place + start + i)
        others = names.shown[rows, None] == every_names.shown
        others |= names.said[rows, None] == every_names.said
        others[own] = False
        yield _Tile(rows, first[rows] @ every.T, own, others)


class _InfoNCE(torch.autograd.Function):
    """½[−log softmax over the row − log softmax over the column] of each own pair; other positives count in neither."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, log_scale: Tensor, names: Names, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        every, every_names = ranks.gather(second), Names(ranks.gather(names.shown), ranks.gather(names.said))
        scale = log_scale.exp()
        rows, hardest, negatives = (first.new_empty(len(first)) for _ in range(3))
        peak = -2 * scale.expand(len(every)).clone()  # below any logit, and finite where all of a tile is masked
        total, own = torch.zeros_like(peak), first.new_empty(len(first))
        for tile in _tiles(first, every, names, every_names, size):
            logits = (scale * tile.cosines).masked_fill_(tile.others, -torch.inf)
            own[tile.rows] = logits[tile.own]
            rows[tile.rows] = logits.logsumexp(1)
            higher = torch.maximum(peak, logits.amax(0))
            total = total * (peak - higher).exp() + (logits - higher).exp().sum(0)
            peak = higher
            logits[tile.own] = -torch.inf
            hardest[tile.rows] = logits.amax(1)
            negatives[tile.rows] = (logits.shape[1] - 1 - tile.others.sum(1)).to(first.dtype)
        parts = ranks.gather((peak + total.log())[None])
        columns = parts.logsumexp(0)
        mine = slice(ranks.index() * len(first), (ranks.index() + 1) * len(first))
        ctx.save_for_backward(first, every, log_scale, rows, columns)
        ctx.names, ctx.every_names, ctx.size = names, every_names, size
        hit = (own > hardest).to(first.dtype)
        ctx.mark_non_differentiable(hit, negatives)
        return (rows + columns[mine]) / 2 - own, hit, negatives

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        first, every, log_scale, rows, columns = ctx.saved_tensors
        scale, every_grad = log_scale.exp(), ranks.gather(grad)
        d_first, d_every = torch.empty_like(first), torch.zeros_like(every)
        for tile in _tiles(first, every, ctx.names, ctx.every_names, ctx.size):
            logits = (scale * tile.cosines).masked_fill_(tile.others, -torch.inf)
            pull = (logits - rows[tile.rows, None]).exp_().mul_(grad[tile.rows, None] / 2)
            pull += (logits - columns).exp_().mul_(every_grad / 2)
            pull[tile.own] -= grad[tile.rows]
            _pull(pull, scale, first, every, tile.rows, d_first, d_every)
        return d_first, ranks.sum_own(d_every), (first * d_first).sum().reshape(log_scale.shape), None, None


class _Sigmoid(torch.autograd.Function):
    """Σⱼ −log σ(zᵢⱼ(s·cosᵢⱼ + b)) of each row, z = 1 for positive pairs and −1 for all others."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, log_scale: Tensor, bias: Tensor, names: Names, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        every, every_names = ranks.gather(second), Names(ranks.gather(names.shown), ranks.gather(names.said))
        losses, hit, negatives = (first.new_empty(len(first)) for _ in range(3))
        for tile in _tiles(first, every, names, every_names, size):
            logits, own = log_scale.exp() * tile.cosines + bias, tile.cosines[tile.own]
            positive = tile.others.index_put(tile.own, torch.ones_like(tile.own[0], dtype=torch.bool))
            losses[tile.rows] = F.softplus(logits.where(~positive, -logits)).sum(1)
            hit[tile.rows] = (own > tile.cosines.masked_fill(positive, -torch.inf).amax(1)).to(first.dtype)
            negatives[tile.rows] = (~positive).sum(1).to(first.dtype)
        ctx.save_for_backward(first, every, log_scale, bias)
        ctx.names, ctx.every_names, ctx.size = names, every_names, size
        ctx.mark_non_differentiable(hit, negatives)
        return losses, hit, negatives

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        first, every, log_scale, bias = ctx.saved_tensors
        scale = log_scale.exp()
        d_first, d_every, d_bias = torch.empty_like(first), torch.zeros_like(every), torch.zeros_like(bias)
        for tile in _tiles(first, every, ctx.names, ctx.every_names, ctx.size):
            tile.others[tile.own] = True
            # d softplus(−x)/dx = σ(x) − 1 for a positive pair, d softplus(x)/dx = σ(x) for the others
            pull = (scale * tile.cosines + bias).sigmoid_().sub_(tile.others.to(first.dtype))
            pull *= grad[tile.rows, None]
            d_bias += pull.sum()
            _pull(pull, scale, first, every, tile.rows, d_first, d_every)
        d_scale = (first * d_first).sum().reshape(log_scale.shape)
        return d_first, ranks.sum_own(d_every), d_scale, d_bias, None, None


def _pull(
    pull: Tensor, scale: Tensor, first: Tensor, every: Tensor, rows: slice, d_first: Tensor, d_every: Tensor
) -> None:
    """From the derivative by a tile's logits ``[t N]`` those by both sides; that by log s is Σ first·d_first."""
    pull *= scale
    torch.mm(pull, every, out=d_first[rows])
    d_every.addmm_(pull.T, first[rows])


@dataclass(frozen=True)
class Compared:
    """Per pair ``[n]``: loss with gradients; whether its own other half is nearer than any negative; how many those."""

    loss: Tensor
    hit: Tensor
    negatives: Tensor


def infonce(first: Tensor, second: Tensor, log_scale: Tensor, names: Names, size: int) -> Compared:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3) of normalised ``[n d]`` sides, s = exp(log_scale).

    Args:
        first, second: this rank's halves; float32 or float64.
        names: which pairs are positive; positives that are not a pair's own are neither pulled nor pushed by it: they
            are pulled as pairs of their own.
        size: rows of the matrix that are held at a time.
    """
    return Compared(*_InfoNCE.apply(first, second, log_scale, names, size))


def sigmoid(first: Tensor, second: Tensor, log_scale: Tensor, bias: Tensor, names: Names, size: int) -> Compared:
    """SigLIP's loss (Zhai et al. 2023, algorithm 1) of normalised ``[n d]`` sides; arguments as for `infonce`."""
    return Compared(*_Sigmoid.apply(first, second, log_scale, bias, names, size))
