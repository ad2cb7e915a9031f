"""What a denoising loss is a weighted mean of, computed a second time from the backbone alone: for the laws of masks
(test_masks.py) and of places that move (test_objectives.py)."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.batch import Batch
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng


@torch.no_grad()
def latents_and_error(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Clean latents, and the squared error of each of their elements with the loss's own weight of the level: with the
    draws of seed 0 at step 0, nothing dropped, of a model that predicts v or the sample."""
    rng, keep = Rng(0, 0, batch.positions), torch.zeros(len(batch), dtype=torch.bool)
    encoded = model.encode(batch.frames)
    z = model.draw_latents(encoded, rng)
    level, noise = Denoise().draw(model, rng), rng.normal("noise", z.shape[1:])
    condition = model.condition(encoded, batch.captions, drop_text=keep, drop_image=keep)
    by_sample = (-1, *[1] * (z.ndim - 1))
    alpha, sigma = (v.view(by_sample).float() for v in model.schedule.signal(level))
    aim = {"sample": z, "v_prediction": alpha * noise - sigma * z}[model.schedule.kind]
    error = (model.predict(alpha * z + sigma * noise, level, condition) - aim) ** 2
    return z, error * model.schedule.weight(level).float().view(by_sample)
