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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain import ranks
from mmtrain.rng import key

_ODD = 6364136223846793005  # Knuth's multiplier: two 63-bit names make one


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

    def and_both(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is shown, what is said, and a number for the two together."""
        return self.shown, self.said, self.shown * _ODD + self.said

    @classmethod
    def apart(cls, count: int, device: torch.device) -> "Names":
        """Names of pairs that have nothing in common with each other."""
        numbers = torch.arange(count, device=device) + ranks.index() * count
        return cls(numbers, numbers)


class _Matrix(NamedTuple):
    """Logits between this rank's rows and the columns of all ranks; made tile by tile, never held."""

    alone: bool  # no two pairs share a name, as far as that is known without waiting for a device: on a CPU
    rows: Tensor  # [n d], the temperature in them
    columns: Tensor  # [N d]
    shown: Tensor  # int32 [n], with the next one: equal numbers where names are equal
    columns_shown: Tensor  # int32 [N]
    said: Tensor
    columns_said: Tensor
    negatives: Tensor  # [n], how many of a row's columns are no positives

    @classmethod
    def of(cls, first: Tensor, second: Tensor, scale: Tensor, names: Names) -> "_Matrix":
        every = Names(ranks.gather(names.shown), ranks.gather(names.said))
        shown, said, both = (_matched(own, all_) for own, all_ in zip(names.and_both(), every.and_both(), strict=True))
        negatives = len(every.said) - (shown[2] + said[2] - both[2])
        alone = negatives.device.type == "cpu" and bool((negatives == len(every.said) - 1).all())
        return cls(alone, first * scale, ranks.gather(second), *shown[:2], *said[:2], negatives.to(first.dtype))

    def tiles(self, size: int) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor], Tensor | None]]:
        """Which rows, their logits ``[t N]``, where each meets its own other half, and bool ``[t N]``: positive pairs
        besides that, or None where it is known that there are none."""
        start, device = ranks.index() * len(self.rows), self.rows.device
        for i in range(0, len(self.rows), size):
            rows = slice(i, min(i + size, len(self.rows)))
            place = torch.arange(rows.stop - i, device=device)
            own = (place, place + start + i)
            others = None
            if not self.alone:
                others = self.shown[rows, None] == self.columns_shown
                others |= self.said[rows, None] == self.columns_said
                others[own] = False
            yield rows, self.rows[rows] @ self.columns.T, own, others


def _matched(own: Tensor, every: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both as small numbers (equal where the names are), and how many of all are equal to each own one."""
    order = every.sort().values
    before, after = (torch.searchsorted(order, own, right=right, out_int32=True) for right in (False, True))
    return before, torch.searchsorted(order, every, out_int32=True), after - before


class _InfoNCE(torch.autograd.Function):
    """½[−log softmax over the row − log softmax over the column] of each own pair; other positives count in neither."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, log_scale: Tensor, names: Names, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale = log_scale.exp()
        matrix = _Matrix.of(first, second, scale, names)
        own, rows, hardest = (first.new_empty(len(first)) for _ in range(3))
        peak = (
            -2 * scale.expand(len(matrix.columns)).clone()
        )  # below any logit, and finite where all of a tile is masked
        total = torch.zeros_like(peak)
        for part, logits, place, others in matrix.tiles(size):
            if others is not None:
                logits.masked_fill_(others, -torch.inf)
            own[part], rows[part] = logits[place], logits.logsumexp(1)
            higher = torch.maximum(peak, logits.amax(0))
            total = total * (peak - higher).exp() + (logits - higher).exp_().sum(0)
            peak = higher
            logits[place] = -torch.inf
            hardest[part] = logits.amax(1)
        columns = ranks.gather((peak + total.log())[None]).logsumexp(0)
        mine = slice(ranks.index() * len(first), (ranks.index() + 1) * len(first))
        ctx.save_for_backward(first, log_scale, rows, columns, *matrix[1:])
        ctx.size, ctx.alone = size, matrix.alone
        hit = (own > hardest).to(first.dtype)
        ctx.mark_non_differentiable(hit, matrix.negatives)
        return (rows + columns[mine]) / 2 - own, hit, matrix.negatives

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        first, log_scale, rows, columns, *saved = ctx.saved_tensors
        matrix, half, every_half = _Matrix(ctx.alone, *saved), grad / 2, ranks.gather(grad) / 2
        pulls = _Pulls(matrix, log_scale)
        for part, logits, place, others in matrix.tiles(ctx.size):
            if others is not None:
                logits.masked_fill_(others, -torch.inf)
            pull = (logits - rows[part, None]).exp_().mul_(half[part, None])
            pull += logits.sub_(columns).exp_().mul_(every_half)
            pull[place] -= grad[part]
            pulls.add(part, pull)
        return *pulls.gradients(first), None, None


class _Sigmoid(torch.autograd.Function):
    """Σⱼ −log σ(zᵢⱼ(s·cosᵢⱼ + b)) of each row, z = 1 for positive pairs and −1 for all others."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, log_scale: Tensor, bias: Tensor, names: Names, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix = _Matrix.of(first, second, log_scale.exp(), names)
        losses, hit = (first.new_empty(len(first)) for _ in range(2))
        for part, logits, place, others in matrix.tiles(size):
            own = logits.add_(bias)[place]
            signed = logits if others is None else torch.where(others, -logits, logits)
            signed[place] = -own
            losses[part] = F.softplus(signed).sum(1)
            logits[place] = -torch.inf
            negatives = logits if others is None else logits.masked_fill_(others, -torch.inf)
            hit[part] = (own > negatives.amax(1)).to(first.dtype)
        ctx.save_for_backward(first, log_scale, bias, *matrix[1:])
        ctx.size, ctx.alone = size, matrix.alone
        ctx.mark_non_differentiable(hit, matrix.negatives)
        return losses, hit, matrix.negatives

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        first, log_scale, bias, *saved = ctx.saved_tensors
        matrix, d_bias = _Matrix(ctx.alone, *saved), torch.zeros_like(bias)
        pulls = _Pulls(matrix, log_scale)
        for part, logits, place, others in matrix.tiles(ctx.size):
            # d softplus(−x)/dx = σ(x) − 1 for a positive pair, d softplus(x)/dx = σ(x) for the others
            pull = logits.add_(bias).sigmoid_()
            if others is not None:
                pull.add_(others, alpha=-1)
            pull[place] -= 1
            pull.mul_(grad[part, None])
            d_bias += pull.sum()
            pulls.add(part, pull)
        return *pulls.gradients(first), d_bias, None, None


class _Pulls:
    """From derivatives by logits, tile by tile, the gradients by both sides and by the logarithm of the temperature."""

    def __init__(self, matrix: _Matrix, log_scale: Tensor) -> None:
        self.matrix, self.log_scale = matrix, log_scale
        self.d_rows, self.d_columns = torch.empty_like(matrix.rows), torch.zeros_like(matrix.columns)

    def add(self, part: slice, pull: Tensor) -> None:
        """Takes the derivative ``[t N]`` by the logits of some rows."""
        torch.mm(pull, self.matrix.columns, out=self.d_rows[part])
        self.d_columns.addmm_(pull.T, self.matrix.rows[part])

    def gradients(self, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By ``first``, by this rank's ``second``, and by log s: Σ derivative · logit = Σ first · d_first."""
        d_first = self.d_rows.mul_(self.log_scale.exp())
        d_scale = (first * d_first).sum().reshape(self.log_scale.shape)
        return d_first, ranks.sum_own(self.d_columns), d_scale


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
