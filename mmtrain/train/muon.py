"""Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal, is its step; AdamW trains what is no matrix.

torch.optim.Muon takes no convolutions, which are matrices of output channels by all the rest here, and works in 16
bits, which most processors have no units for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmtrain.errors import UserError
from mmtrain.train.optim import AdamW, groups_of

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic, which brings singular values to between 0.7 and 1.2
_ITERATIONS = 5
_BUNCH = 1 << 22  # numbers: matrices are stacked up to so many, which bounds what a step needs beside the weights
_RMS = 0.2  # of a step, over its rate: about AdamW's, whose rates carry over (Liu et al. 2025)


class Muon(AdamW):
    """Muon for weights of two and more dimensions, AdamW for vectors and for the adapters that ``adamw`` names.

    Args:
        lr, weight_decay, warmup, schedule, floor: as for `Rate`; a rate means what it means to AdamW.
        betas: of AdamW's moments.
        momentum: of matrices, as Nesterov has it.
        scales: by an adapter's name, what its rate is multiplied by; 1 for those not named.
        adamw: adapters that AdamW trains whole.
    """

    whole_weights = True
    bytes_each = 8  # at most: of a matrix one moment, of the rest two, in 32 bits

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        warmup: int = 0,
        schedule: Literal["constant", "cosine"] = "cosine",
        floor: float = 0.05,
        scales: dict[str, float] | None = None,
        adamw: Sequence[str] = (),
    ) -> None:
        more: dict[str, Any] = {"warmup": warmup, "schedule": schedule, "floor": floor, "scales": scales}
        super().__init__(lr=lr, weight_decay=weight_decay, betas=betas, **more)
        if not 0 <= momentum < 1:
            raise UserError("optim.momentum", str(momentum), "at least 0 and below 1", "try 0.95")
        self.momentum, self.adamw = momentum, tuple(adamw)

    def parts(self, name: str, weight: nn.Parameter) -> tuple[str, ...]:
        return ("momentum",) if self._is_matrix(name, weight) else super().parts(name, weight)

    def optimizer(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """Groups by adapter, matrices apart from the rest.

        Raises:
            UserError: ``scales`` or ``adamw`` name an adapter that has no weights, or weights lie in pieces.
        """
        if any(isinstance(weight.data, DTensor) for weight in weights.values()):
            self.check_pieces()
        own = {name.split("/")[0] for name in weights}
        for name in set(self.adamw) - own:
            raise UserError("optim.adamw", f"{name!r}", f"adapters: {', '.join(sorted(own))}", "correct the name")
        groups = groups_of(weights, self.scales, self._is_matrix)
        for group in groups:
            group["matrices"] = group.pop("kind")
        how: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "betas": self.betas, "fused": True}
        return _Muon(groups, momentum=self.momentum, **how)

    def _is_matrix(self, name: str, weight: nn.Parameter) -> bool:
        return weight.ndim > 1 and name.split("/")[0] not in self.adamw


class _Muon(torch.optim.AdamW):
    """AdamW, whose groups of ``matrices`` take Muon's steps."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["matrices"]:
                self._orthogonal(group)
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    @torch.no_grad()
    def _orthogonal(self, group: dict[str, Any]) -> None:
        """A step for a group's matrices, those of one short side together."""
        for weights in _bunches([weight for weight in group["params"] if weight.grad is not None]):
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            moments = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(moments, gradients, 1 - self.momentum)
            ahead = torch._foreach_lerp(gradients, moments, self.momentum)
            matrices = orthogonal([matrix.flatten(1) for matrix in ahead])
            sizes = [_RMS * max(matrix.shape) ** 0.5 for matrix in matrices]
            steps = [matrix.view_as(weight) for matrix, weight in zip(matrices, weights, strict=True)]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_mul_(steps, sizes)
            torch._foreach_add_(weights, steps, alpha=-group["lr"])


def _bunches(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Weights whose matrices have one short side, on one device, of one type: as many together as are small."""
    alike: dict[Any, list[Tensor]] = {}
    for weight in weights:
        side = min(len(weight), weight[0].numel())
        alike.setdefault((side, weight.device, weight.dtype), []).append(weight)
    for found in alike.values():
        bunch: list[Tensor] = []
        held = 0
        for weight in found:
            if bunch and held + weight.numel() > _BUNCH:
                yield bunch
                bunch, held = [], 0
            bunch.append(weight)
            held += weight.numel()
        yield bunch


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """About the nearest matrices with orthonormal rows or columns, whichever are fewer, to matrices ``[m n]`` of one
    short side: five Newton-Schulz iterations, which leave singular values between 0.7 and 1.2. Zeros stay zeros.

    Each iteration multiplies X by a polynomial of X·Xᵀ, so that the product of all five is found among the small
    squares X·Xᵀ, which many matrices stack, before it meets X (times: benchmarks/RESULTS.md).
    """
    tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    wide = [matrix.mT if is_tall else matrix for matrix, is_tall in zip(matrices, tall, strict=True)]
    exact = [matrix.to(torch.promote_types(matrix.dtype, torch.float32)) for matrix in wide]
    square = torch.stack([matrix @ matrix.mT for matrix in exact])
    norm = square.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp_min(1e-7)[:, None, None]
    square, product = square / norm**2, 1 / norm * torch.eye(square.shape[1]).to(square)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        factor = b * square + c * square @ square
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor @ product
        square = factor @ square @ factor
    found = [(left @ matrix).to(given) for left, matrix, given in zip(product, exact, wide, strict=True)]
    return [matrix.mT if is_tall else matrix for matrix, is_tall in zip(found, tall, strict=True)]
