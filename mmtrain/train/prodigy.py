"""Prodigy (Mishchenko & Defazio 2024): an optimizer that finds its own step size, by the library prodigyopt.

pip install "mmtrain[prodigy]"
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmtrain.errors import UserError
from mmtrain.train.optim import Rate

PARTS = ("s", "p0", "exp_avg", "exp_avg_sq")
FOUND = ("k", "d", "d_max", "d_numerator")
"""What a step finds for all weights together: plain numbers, held in 64 bits."""


class Prodigy(Rate):
    """Prodigy with the schedule of every optimizer here; its rate multiplies the step size that it finds.

    Args:
        lr, weight_decay, betas, warmup, schedule, floor: as for `Rate`; leave ``lr`` at 1.
        d0: step size that it starts from.
        d_coef: what the found step size is multiplied by.
        safeguard_warmup: keep the rate of the warm-up out of what is found; right with a warm-up.
    """

    bytes_each = 16  # two moments, where the weight began, and a sum of gradients, in 32 bits

    def __init__(
        self,
        *,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: int = 0,
        schedule: Literal["constant", "cosine"] = "cosine",
        floor: float = 0.0,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        safeguard_warmup: bool = True,
    ) -> None:
        more: dict[str, Any] = {"warmup": warmup, "schedule": schedule, "floor": floor}
        super().__init__(lr=lr, weight_decay=weight_decay, betas=betas, **more)
        self.found: dict[str, Any] = {"d0": d0, "d_coef": d_coef, "safeguard_warmup": safeguard_warmup}

    def optimizer(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """One group: a step size is found for all weights together.

        Raises:
            UserError: the library is not installed, or weights lie in pieces.
        """
        try:
            import prodigyopt
        except ImportError as error:
            fix = 'pip install "mmtrain[prodigy]"'
            raise UserError("optim", "Prodigy, without prodigyopt", "the library, which is an extra", fix) from error
        if any(isinstance(weight.data, DTensor) for weight in weights.values()):
            raise UserError("optim", "Prodigy on weights in pieces", "whole weights", "set trainer.strategy=ddp")
        own = [{"params": list(weights.values()), "scale": 1.0}]
        how = {"lr": self.lr, "betas": self.betas, "weight_decay": self.weight_decay, **self.found}
        made: torch.optim.Optimizer = prodigyopt.Prodigy(own, **how)
        return made

    def held(self, optimizer: Any, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        states = {name: optimizer.state[weight] for name, weight in weights.items()}
        held = {f"{name}/{part}": state[part] for name, state in states.items() for part in PARTS if part in state}
        held |= {f"{name}/step": torch.tensor(state["step"]) for name, state in states.items() if "step" in state}
        [group] = optimizer.param_groups
        return held | {f"found/{name}": torch.tensor(group[name], dtype=torch.float64) for name in FOUND}

    def refill(self, optimizer: Any, weights: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            if f"{name}/step" in saved:
                parts = {part: saved[f"{name}/{part}"].to(weight.device) for part in PARTS}
                optimizer.state[weight] = {**parts, "step": int(saved[f"{name}/step"])}
        [group] = optimizer.param_groups
        group |= {name: float(saved[f"found/{name}"]) for name in FOUND}
        group["k"] = int(group["k"])
