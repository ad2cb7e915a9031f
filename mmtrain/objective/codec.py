"""Training a codec on pixels: reconstruction and a light pull of the latents towards a unit normal."""

from typing import Any

import torch

from mmtrain.batch import Batch, Loss
from mmtrain.rng import Rng


class Reconstruct:
    """L1 + L2 reconstruction and a weighted KL divergence (Rombach et al. 2022, without the adversarial term).

    Args:
        kl_weight: of what the codec is penalised for: the divergence in nats per latent element of a KL codec, the pull
            between latents and codebook of a VQ codec.
    """

    def __init__(self, *, kl_weight: float) -> None:
        self.kl_weight = kl_weight

    def __call__(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        """Loss per sample over frames ``[b t c h w]``."""
        assert batch.frames is not None
        frames = batch.frames
        noise = rng.normal("posterior", backbone.latent_shape(frames)).to(frames.device)
        pixels, nats = backbone.reconstruct(frames, noise)
        error = pixels - frames
        squared = error.square().flatten(1).mean(1)
        per_sample = error.abs().flatten(1).mean(1) + squared + self.kl_weight * nats
        psnr = 10 * torch.log10(4.0 / squared.detach()).mean()
        return Loss(per_sample, {"psnr": psnr, "penalty": nats.detach().mean()})
