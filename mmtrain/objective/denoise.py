"""Denoising, for every family: the backbone brings its schedule and its network; this brings the loss.

Text and image conditioning are dropped per sample so that the model learns the branches that guidance compares; a
contrastive term can tie an adapter's conditioning to the embedding of what is shown. Which levels are drawn is
`levels.py`'s.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from mmtrain.backbone import schedule
from mmtrain.batch import Batch, Loss
from mmtrain.errors import UserError
from mmtrain.objective.contrastive import symmetric
from mmtrain.objective.levels import LogitNormal, shares
from mmtrain.objective.places import mean_of_one, moving, unmasked
from mmtrain.rng import Rng

ALIGNMENT_LOG_SCALE = 2.66  # ln(1 / 0.07), CLIP's initial temperature, kept fixed here

Weighting = Literal["own", "sample", "epsilon", "v_prediction", "min_snr", "debiased"]


class Denoise:
    """Weighted error of the family's prediction at a drawn noise level.

    Args:
        drop_text: chance that a sample's caption is replaced by the empty one.
        drop_image: chance that a sample's image conditioning is taken away.
        alignment: weight of the symmetric contrastive term between the conditioning that an adapter makes and the
            clip's own embedding; 0 leaves it out.
        levels: how noise levels are drawn; None: as the family's paper does.
        weighting: by level: ``own``, the family's; ``sample``, ``epsilon``, ``v_prediction``, equal weight on the error
            of that, whatever the network predicts; ``min_snr`` (Hang et al. 2023); ``debiased`` (Yu et al. 2023).
        gamma: of ``min_snr``.
        huber: the error at which the squared loss turns into a straight one (pseudo-Huber); None: squared everywhere.
        motion_weight: of clips, how much more those places count whose latents are no longer the first frame's; 0: all
            count the same (`places.moving`).
        unmasked_weight: of places that a sample's mask leaves out (`data/mask.py`); 0: nothing is learned there; 1:
            masks are passed over.
    """

    def __init__(
        self,
        *,
        drop_text: float = 0.1,
        drop_image: float = 0.1,
        alignment: float = 0.0,
        levels: LogitNormal | None = None,
        weighting: Weighting = "own",
        gamma: float = 5.0,
        huber: float | None = None,
        motion_weight: float = 0.0,
        unmasked_weight: float = 1.0,
    ) -> None:
        chances = {"drop_text": drop_text, "drop_image": drop_image, "unmasked_weight": unmasked_weight}
        for name, share in chances.items():
            if not 0 <= share <= 1:
                raise UserError(f"objective.{name}", str(share), "between 0 and 1", "correct it")
        if gamma <= 0 or (huber is not None and huber <= 0):
            raise UserError("objective", f"gamma {gamma}, huber {huber}", "above 0", "correct it")
        if motion_weight < 0:
            raise UserError("objective.motion_weight", f"{motion_weight:g}", "0 or above", "correct it")
        self.drop_text, self.drop_image, self.alignment = drop_text, drop_image, alignment
        self.levels, self.weighting, self.gamma, self.huber = levels, weighting, gamma, huber
        self.motion_weight, self.unmasked_weight = motion_weight, unmasked_weight

    def __call__(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        encoded = batch.encoded if batch.encoded else backbone.encode(batch.frames)
        latents = backbone.draw_latents(encoded, rng)
        condition = self.condition(backbone, encoded, batch, rng)
        level = self.draw(backbone, rng).to(latents.device)
        noise = rng.normal("noise", latents.shape[1:]).to(latents.device)
        alpha, sigma = backbone.schedule.signal(level)
        prediction = backbone.predict(schedule.mix(latents, noise, alpha, sigma), level, condition)
        wanted = schedule.target(backbone.schedule.kind, latents, noise, alpha, sigma)
        per_sample = self.weight(backbone, level) * self.error(
            prediction - wanted, self.places(backbone, latents, batch.masks)
        )
        logs = {"denoise": per_sample.detach().mean(), **shares(per_sample.detach(), alpha, sigma)}
        if self.alignment:
            made, shown = backbone.alignment(condition, encoded)
            contrast = symmetric(made, shown, ALIGNMENT_LOG_SCALE)
            logs["alignment"] = contrast.detach().mean()
            per_sample = per_sample + self.alignment * contrast
        return Loss(per_sample, logs)

    def condition(self, backbone: Any, encoded: dict[str, Tensor], batch: Batch, rng: Rng) -> dict[str, Tensor]:
        """The backbone's conditioning, parts of it dropped by chance."""
        drop_text, drop_image = rng.chance("drop text", self.drop_text), rng.chance("drop image", self.drop_image)
        made: dict[str, Tensor] = backbone.condition(
            encoded, batch.captions, drop_text=drop_text, drop_image=drop_image
        )
        return made

    def draw(self, backbone: Any, rng: Rng) -> Tensor:
        """Noise levels ``[b]``, spread evenly over a batch."""
        fractions = rng.spread("level")
        level: Tensor = backbone.schedule.at(fractions if self.levels is None else self.levels(fractions))
        return level

    def places(self, backbone: Any, latents: Tensor, masks: Tensor | None) -> Tensor | None:
        """Weights that broadcast against the latents, of mean one in each sample; None where all places count alike."""
        weights = []
        if self.motion_weight:
            weights.append(moving(latents, backbone.time_axis, self.motion_weight))
        if self.unmasked_weight < 1 and masks is not None:
            weights.append(unmasked(latents, masks, self.unmasked_weight))
        return mean_of_one(math.prod(weights)) if weights else None  # type: ignore[arg-type]

    def error(self, difference: Tensor, places: Tensor | None = None) -> Tensor:
        """Weighted mean over a sample's elements, ``[b]``: squared, or 2c²·(√(1 + (d / c)²) − 1), which is near.

        Written as 2d² / (√(1 + (d / c)²) + 1): the difference above loses every digit of a small d.
        """
        error = difference.square()
        if self.huber is not None:
            error = 2 * error / ((1 + error / self.huber**2).sqrt() + 1)
        return (error if places is None else error * places).flatten(1).mean(1)

    def weight(self, backbone: Any, level: Tensor) -> Tensor:
        """Of the prediction's error, float32 ``[b]``."""
        if self.weighting == "own":
            return torch.as_tensor(backbone.schedule.weight(level)).float()
        kind, (alpha, sigma) = backbone.schedule.kind, backbone.schedule.signal(level)
        return on_prediction(kind, self.weighting, alpha, sigma, self.gamma).float()


def on_prediction(
    kind: schedule.Prediction, weighting: Weighting, alpha: Tensor, sigma: Tensor, gamma: float
) -> Tensor:
    """What multiplies a prediction's squared error so that a weighting holds, whatever the network predicts, ``[b]``.

    With snr = α² / σ², the error of x has weight 1 (``sample``), snr (``epsilon``), snr + 1 (``v_prediction``; EDM's
    weight too), min(snr, γ) (``min_snr``), √snr (``debiased``); `schedule.error_scale` carries it over.
    """
    snr = (alpha / sigma) ** 2
    on_sample = {
        "sample": torch.ones_like(snr),
        "epsilon": snr,
        "v_prediction": snr + 1,
        "min_snr": snr.clamp(max=gamma),
        "debiased": snr.sqrt(),
    }[weighting]
    return on_sample * schedule.error_scale(kind, alpha, sigma)


def held_out(backbone: Any, batch: Batch, seed: int, draws: int) -> Tensor:
    """Loss per sample ``[b]`` with noise and levels fixed by (seed, place), averaged over draws: comparable between
    runs."""
    objective = Denoise(drop_text=0.0, drop_image=0.0)
    with torch.no_grad():
        losses = [objective(backbone, batch, Rng(seed, draw, batch.positions)).per_sample for draw in range(draws)]
    return torch.stack(losses).mean(0)
