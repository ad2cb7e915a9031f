"""Denoising, for every family: the backbone brings its own noise, prediction and weight; this brings the loss.

Text and image conditioning are dropped per sample so that the model learns the branches that guidance compares; a
contrastive term can tie an adapter's conditioning to the embedding of what is shown.
"""

from typing import Any

import torch

from mmtrain.batch import Batch, Loss
from mmtrain.objective.contrastive import symmetric
from mmtrain.rng import Rng

ALIGNMENT_LOG_SCALE = 2.66  # ln(1 / 0.07), CLIP's initial temperature, kept fixed here


class Denoise:
    """Weighted squared error of the family's prediction at a drawn noise level.

    Args:
        drop_text: chance that a sample's caption is replaced by the empty one.
        drop_image: chance that a sample's image conditioning is taken away.
        alignment: weight of the symmetric contrastive term between the conditioning that an adapter makes and the
            clip's own embedding; 0 leaves it out.
    """

    def __init__(self, *, drop_text: float = 0.1, drop_image: float = 0.1, alignment: float = 0.0) -> None:
        self.drop_text, self.drop_image, self.alignment = drop_text, drop_image, alignment

    def __call__(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        encoded = batch.encoded if batch.encoded else backbone.encode(batch.frames)
        latents = backbone.draw_latents(encoded, rng)
        condition = backbone.condition(
            encoded,
            batch.captions,
            drop_text=rng.chance("drop text", self.drop_text),
            drop_image=rng.chance("drop image", self.drop_image),
        )
        level = backbone.draw_level(rng).to(latents.device)
        noise = rng.normal("noise", latents.shape[1:]).to(latents.device)
        prediction = backbone.predict(backbone.noise(latents, noise, level), level, condition)
        error = (prediction - backbone.target(latents, noise, level)).square().flatten(1).mean(1)
        per_sample = backbone.weight(level) * error
        logs = {"denoise": per_sample.detach().mean()}
        if self.alignment:
            made, shown = backbone.alignment(condition, encoded)
            contrast = symmetric(made, shown, ALIGNMENT_LOG_SCALE)
            logs["alignment"] = contrast.detach().mean()
            per_sample = per_sample + self.alignment * contrast
        return Loss(per_sample, logs)


def held_out(backbone: Any, batch: Batch, seed: int, draws: int) -> torch.Tensor:
    """Loss per sample ``[b]`` with noise and levels fixed by (seed, place), averaged over draws: comparable between
    runs."""
    objective = Denoise(drop_text=0.0, drop_image=0.0)
    with torch.no_grad():
        losses = [objective(backbone, batch, Rng(seed, draw, batch.positions)).per_sample for draw in range(draws)]
    return torch.stack(losses).mean(0)
