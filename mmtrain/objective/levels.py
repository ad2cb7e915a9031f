"""Which noise levels training draws, and how a loss is told apart by level. What a level is, is the schedule's."""

import torch
from torch import Tensor

from mmtrain.errors import UserError

QUARTERS = 4


class LogitNormal:
    """Fractions of the schedule whose logit is normal (Esser et al. 2024, equation 19), and SD3's shift of them.

    Args:
        mean: above 0 draws more noise, below less.
        deviation: small draws the middle alone.
        shift: as in equation 23 there; 1 is none. A backbone of rectified flow has a shift of its own already.
    """

    def __init__(self, *, mean: float = 0.0, deviation: float = 1.0, shift: float = 1.0) -> None:
        if deviation <= 0 or shift <= 0:
            raise UserError("objective.levels", f"deviation {deviation}, shift {shift}", "above 0", "correct them")
        self.mean, self.deviation, self.shift = mean, deviation, shift

    def __call__(self, uniform: Tensor) -> Tensor:
        """Even fractions in (0, 1) → drawn ones, ``[b]``."""
        drawn = torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(uniform))
        return self.shift * drawn / (1 + (self.shift - 1) * drawn)


def shares(per_sample: Tensor, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean loss of each quarter of the noise's share σ / (α + σ); NaN for a quarter that no sample of the batch is in.

    ``per_sample``, ``alpha``, ``sigma``: ``[b]``. The names sort from little noise to much.
    """
    quarter = (sigma / (alpha + sigma) * QUARTERS).long().clamp(max=QUARTERS - 1)
    return {f"noise {i + 1}/{QUARTERS}": per_sample[quarter == i].mean() for i in range(QUARTERS)}
