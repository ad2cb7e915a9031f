"""Step distillation: latent consistency (Luo et al. 2023), with adapters alone as LCM-LoRA has it (Luo et al. 2023b).

The teacher is the frozen network without its adapters, guided; the student is the network with them. Both ends of one
guided DDIM step of the teacher are to be mapped to the same clean latents. Sample what it trains with
``backbone.few_steps=true``, in 4 to 8 steps and without guidance.
"""

from typing import Any

import torch
from torch import Tensor

from mmtrain.adapter.injected import without
from mmtrain.backbone import schedule
from mmtrain.batch import Batch, Loss
from mmtrain.errors import UserError
from mmtrain.objective.levels import shares
from mmtrain.rng import Rng

DATA_DEVIATION = 0.5
"""Of latents, as `LCMScheduler` takes it."""


class Consistency:
    """The consistency loss between neighbouring timesteps.

    Args:
        grid: timesteps on the teacher's way, evenly spaced; it leaps from each to the one before.
        guidance: of the teacher, drawn between these two for each sample.
        huber: where the loss turns from squared to straight.
        scaling: of timesteps in the boundary condition, as `LCMScheduler` has it.
    """

    def __init__(
        self,
        *,
        grid: int = 50,
        guidance: tuple[float, float] = (3.0, 8.0),
        huber: float = 0.001,
        scaling: float = 10.0,
    ) -> None:
        if grid < 2 or huber <= 0 or guidance[0] > guidance[1]:
            came = f"grid {grid}, huber {huber}, guidance {guidance}"
            raise UserError("objective", came, "grid ≥ 2, huber > 0, guidance from low to high", "correct them")
        self.grid, self.guidance, self.huber, self.scaling = grid, guidance, huber, scaling

    def __call__(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        if not isinstance(backbone.schedule, schedule.Discrete):
            came = f"a {type(backbone).__name__}, whose levels are not timesteps"
            raise UserError("objective", came, "a family with timesteps", "distil Stable Diffusion, XL or AnimateDiff")
        encoded = batch.encoded if batch.encoded else backbone.encode(batch.frames)
        latents = backbone.draw_latents(encoded, rng)
        nothing, all_ = torch.zeros(len(batch), dtype=torch.bool), torch.ones(len(batch), dtype=torch.bool)
        condition, away = (
            backbone.condition(encoded, batch.captions, drop_text=drop, drop_image=nothing) for drop in (nothing, all_)
        )
        start, end = (t.to(latents.device) for t in self.steps(backbone.schedule, rng.spread("level")))
        noise = rng.normal("noise", latents.shape[1:]).to(latents.device)
        noisy = schedule.mix(latents, noise, *backbone.schedule.signal(start))
        got = self.consistent(backbone, noisy, start, condition)
        low, high = self.guidance
        guidance = (low + (high - low) * rng.uniform("guidance")).to(latents.device)
        with torch.no_grad():
            with without(backbone.network):
                before = leap(backbone, noisy, start, end, (condition, away), guidance)
            wanted = self.consistent(backbone, before, end, condition)
        squared, c = (got - wanted).square(), self.huber
        per_sample = (squared / ((squared + c * c).sqrt() + c)).flatten(1).mean(1)  # √(d² + c²) − c, to every digit
        alpha, sigma = backbone.schedule.signal(start)
        return Loss(per_sample, shares(per_sample.detach(), alpha, sigma))

    def steps(self, levels: schedule.Discrete, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn timesteps of the grid and those before them, ``[b]`` each; before the first is 0."""
        stride = levels.count // self.grid
        place = (fractions * self.grid).long().clamp(max=self.grid - 1)
        start = (place + 1) * stride - 1
        return start, (start - stride).clamp(min=0)

    def consistent(self, backbone: Any, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """f(z, t) = c_skip·z + c_out·x̂, the identity at t = 0 (Song et al. 2023, equation 5)."""
        alpha, sigma = backbone.schedule.signal(level)
        prediction = backbone.predict(noisy, level, condition)
        x = schedule.denoised(backbone.schedule.kind, prediction, noisy, alpha, sigma)
        t = self.scaling * level.double()
        skip = DATA_DEVIATION**2 / (t**2 + DATA_DEVIATION**2)
        out = t / (t**2 + DATA_DEVIATION**2).sqrt()
        return schedule.wide(skip, noisy) * noisy + schedule.wide(out, noisy) * x


def leap(
    backbone: Any,
    noisy: Tensor,
    start: Tensor,
    end: Tensor,
    conditions: tuple[dict[str, Tensor], dict[str, Tensor]],
    guidance: Tensor,
) -> Tensor:
    """One guided DDIM step (Song et al. 2021, equation 12 with η = 0) from ``start`` to ``end``, ``[b]`` each."""
    levels = backbone.schedule
    signal = levels.signal(start)
    found = []
    for condition in conditions:
        prediction = backbone.predict(noisy, start, condition)
        found.append(
            (
                schedule.denoised(levels.kind, prediction, noisy, *signal),
                schedule.noise_of(levels.kind, prediction, noisy, *signal),
            )
        )
    (x, e), (x_away, e_away) = found
    w = schedule.wide(guidance, noisy)
    return schedule.mix(x_away + w * (x - x_away), e_away + w * (e - e_away), *levels.signal(end))
