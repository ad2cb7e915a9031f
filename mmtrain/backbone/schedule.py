"""Noise schedules: z = α·x + σ·ε, what a network predicts of z, and every conversion between those.

One file for all families; a family says which (α, σ) its level means and which prediction its network makes.
"""

from typing import Any, Literal, get_args

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from mmtrain.errors import UserError

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]
"""ε · x · v = α·ε − σ·x (Salimans & Ho 2022, appendix D) · u = ε − x with α = 1 − σ (Lipman et al. 2023)."""


def wide(level: Tensor, like: Tensor) -> Tensor:
    """``[b]`` → ``[b 1 …]`` of the dtype and place of ``like``."""
    return level.view(-1, *[1] * (like.ndim - 1)).to(like)


def mix(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z = α·x + σ·ε."""
    return wide(alpha, x) * x + wide(sigma, x) * noise


def target(kind: Prediction, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect network would predict."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x
    if kind == "v_prediction":
        return wide(alpha, x) * noise - wide(sigma, x) * x
    return noise - x


def denoised(kind: Prediction, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean x̂ that a prediction implies."""
    alpha, sigma = wide(alpha, noisy), wide(sigma, noisy)
    if kind == "epsilon":
        return (noisy - sigma * prediction) / alpha
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return (alpha * noisy - sigma * prediction) / (alpha**2 + sigma**2)
    return (noisy - sigma * prediction) / (alpha + sigma)


def noise_of(kind: Prediction, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise ε̂ that a prediction implies."""
    alpha, sigma = wide(alpha, noisy), wide(sigma, noisy)
    if kind == "epsilon":
        return prediction
    if kind == "sample":
        return (noisy - alpha * prediction) / sigma
    if kind == "v_prediction":
        return (sigma * noisy + alpha * prediction) / (alpha**2 + sigma**2)
    return (noisy + alpha * prediction) / (alpha + sigma)


def error_scale(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """|x̂ − x|² over the squared error of the prediction that implies x̂, per sample."""
    if kind == "epsilon":
        return (sigma / alpha) ** 2
    if kind == "sample":
        return torch.ones_like(sigma)
    if kind == "v_prediction":
        return (sigma / (alpha**2 + sigma**2)) ** 2
    return (sigma / (alpha + sigma)) ** 2


class Discrete:
    """The discrete, variance-preserving schedule of a pipeline folder (Ho et al. 2020): α² = ᾱ_t, σ² = 1 − ᾱ_t.

    Args:
        config: of the folder's scheduler, whichever class that is.

    Raises:
        UserError: a prediction type that this is not the maths of.
    """

    def __init__(self, config: Any) -> None:
        schedule: Any = DDPMScheduler.from_config(config)
        kind = schedule.config.prediction_type
        if kind not in get_args(Prediction):
            raise UserError("scheduler", f"prediction_type {kind}", f"one of {', '.join(get_args(Prediction))}", "mend")
        self.kind: Prediction = kind
        self.count = int(schedule.config.num_train_timesteps)
        self.kept: Tensor = schedule.alphas_cumprod.double()  # ᾱ_t, the share of the signal's power
        if kind == "epsilon" and float(self.kept[-1]) == 0.0:
            wanted = "v_prediction, for at pure noise an ε says nothing of x"
            raise UserError("scheduler", "epsilon prediction with zero terminal SNR", wanted, "mend its config")

    def at(self, fraction: Tensor) -> Tensor:
        """Timesteps ``[b]`` of fractions in (0, 1): even fractions are the uniform draw of the paper."""
        return (fraction * self.count).long().clamp(0, self.count - 1)

    def signal(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ), float64 ``[b]`` each."""
        kept = self.kept.to(level.device)[level]
        return kept.sqrt(), (1 - kept).sqrt()

    def weight(self, level: Tensor) -> Tensor:
        """Of a prediction's squared error: the same at every level."""
        return torch.ones_like(level, dtype=torch.float64)


class Flow:
    """Rectified flow: level σ in (0, 1), z = (1 − σ)·x + σ·ε, with SD3's shift (Esser et al. 2024, equation 23).

    Args:
        shift: draws more levels near pure noise the larger it is; 1 is none.
        low, high: the levels that the network is made for.
    """

    kind: Prediction = "flow"

    def __init__(self, *, shift: float, low: float = 0.0, high: float = 1.0) -> None:
        if shift <= 0:
            raise UserError("backbone.shift", str(shift), "above 0", "1 is no shift")
        self.shift, self.low, self.high = shift, self._unshifted(low, shift), self._unshifted(high, shift)

    @staticmethod
    def _unshifted(sigma: float, shift: float) -> float:
        return sigma / (shift - (shift - 1) * sigma)

    def at(self, fraction: Tensor) -> Tensor:
        """σ ``[b]`` of fractions in (0, 1): those of the network's own range, shifted."""
        even = self.low + fraction * (self.high - self.low)
        return (self.shift * even / (1 + (self.shift - 1) * even)).float()

    def signal(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ), float64 ``[b]`` each."""
        sigma = level.double()
        return 1 - sigma, sigma

    def weight(self, level: Tensor) -> Tensor:
        """Of a prediction's squared error: the same at every level."""
        return torch.ones_like(level, dtype=torch.float64)


class Continuous:
    """EDM's levels (Karras et al. 2022): σ > 0, z = x + σ·ε, of data with unit variance.

    Args:
        mean, deviation: of ln σ, whose draw is normal.
    """

    kind: Prediction = "sample"

    def __init__(self, *, mean: float, deviation: float) -> None:
        self.mean, self.deviation = mean, deviation

    def at(self, fraction: Tensor) -> Tensor:
        """σ ``[b]`` of fractions in (0, 1): even fractions are the log-normal draw of section 5."""
        return (self.mean + self.deviation * torch.special.ndtri(fraction)).exp().float()

    def signal(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ), ``[b]`` each; α is 1."""
        return torch.ones_like(level), level

    def weight(self, level: Tensor) -> Tensor:
        """λ(σ) = (σ² + 1) / σ²: equal weight on the network's own output at every level."""
        return (level**2 + 1) / level**2
