"""Optimizer and learning-rate schedule of a run, and what a checkpoint holds of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmtrain.errors import UserError


class Rate(ABC):
    """Linear warm-up, then a constant rate or half a cosine down to a floor. A subclass says what goes at that rate.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled.
        betas: of the moments.
        warmup: steps of linear warm-up.
        schedule: ``constant`` or ``cosine`` after the warm-up.
        floor: last learning rate over the peak, for ``cosine``.

    Attributes:
        bytes_each: that the optimizer keeps of each weight.
        whole_weights: whether a weight must lie on one device.
    """

    bytes_each: int
    whole_weights = False

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup: int,
        schedule: Literal["constant", "cosine"],
        floor: float,
    ) -> None:
        if lr <= 0:
            raise UserError("optim.lr", str(lr), "a positive learning rate", "try 1e-4")
        self.lr, self.weight_decay, self.betas = lr, weight_decay, (float(betas[0]), float(betas[1]))
        self.warmup, self.schedule, self.floor = warmup, schedule, floor

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0) of ``steps``."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    @abstractmethod
    def optimizer(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of weights by ``<adapter>/<name>``; each of its groups has the ``scale`` of its rate."""

    def check_pieces(self) -> None:
        """Raises UserError where weights lie in pieces on several devices, and this optimizer needs them whole."""
        if self.whole_weights:
            came = f"{type(self).__name__} on weights in pieces"
            raise UserError("optim", came, "whole weights", "set trainer.strategy=ddp, or optim=adamw")

    @abstractmethod
    def held(self, optimizer: Any, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """What a checkpoint holds of an optimizer."""

    @abstractmethod
    def refill(self, optimizer: Any, weights: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
        """Put back what `held` gave, to the bit."""


class AdamW(Rate):
    """Fused AdamW.

    Args:
        lr, weight_decay, betas, warmup, schedule, floor: as for `Rate`.
        scales: by an adapter's name, what its rate is multiplied by; 1 for those not named.
    """

    bytes_each = 8  # two moments in 32 bits

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup: int = 0,
        schedule: Literal["constant", "cosine"] = "cosine",
        floor: float = 0.05,
        scales: dict[str, float] | None = None,
    ) -> None:
        more: dict[str, Any] = {"warmup": warmup, "schedule": schedule, "floor": floor}
        super().__init__(lr=lr, weight_decay=weight_decay, betas=betas, **more)
        self.scales = dict(scales or {})

    def parts(self, name: str, weight: nn.Parameter) -> tuple[str, ...]:
        """What the optimizer keeps of a weight, by name."""
        return "step", "exp_avg", "exp_avg_sq"

    def optimizer(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """The optimizer of weights by ``<adapter>/<name>``: a group for each adapter, and the ``scale`` of its rate.

        Raises:
            UserError: ``scales`` names an adapter that has no weights.
        """
        groups = groups_of(weights, self.scales, lambda name, weight: type(weight))  # pieces and wholes are not fused
        for group in groups:
            del group["kind"]
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, fused=True)

    def held(self, optimizer: Any, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Moments and counts, by ``<weight>/<part>``."""
        states = {name: optimizer.state[weight] for name, weight in weights.items()}
        return {f"{name}/{part}": tensor for name, state in states.items() for part, tensor in state.items()}

    def refill(self, optimizer: Any, weights: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            if weight.requires_grad:  # what does not was set before the first step, and is kept
                optimizer.state[weight] = {
                    part: saved[f"{name}/{part}"].to(weight.device if part != "step" else "cpu")
                    for part in self.parts(name, weight)
                }


def groups_of(
    weights: Mapping[str, nn.Parameter], scales: Mapping[str, float], kind: Callable[[str, nn.Parameter], Any]
) -> list[dict[str, Any]]:
    """Groups of weights by ``<adapter>/<name>``: one for each adapter and ``kind`` in it, with its rate's ``scale``.

    Raises:
        UserError: ``scales`` names an adapter that has no weights.
    """
    found: dict[tuple[str, Any], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        found.setdefault((name.split("/")[0], kind(name, weight)), []).append(weight)
    names = list(dict.fromkeys(name for name, _ in found))
    for name in scales.keys() - set(names):
        raise UserError("optim.scales", f"{name!r}", f"adapters: {', '.join(names)}", "correct the name")
    return [{"params": own, "scale": scales.get(name, 1.0), "kind": which} for (name, which), own in found.items()]
