"""Wan's causal video codec (Wan Team 2025, section 4.1): the first frame by itself, then a latent for several frames.

`Wan` reads its latents; `WanCodec` trains or tunes it on its own, with the objective of every codec.
"""

import math
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from mmtrain.backbone.codec import Codec, nats, refuse_uneven
from mmtrain.backbone.weights import freeze, load
from mmtrain.errors import UserError

PORTION = 4  # frames that `AutoencoderKLWan` of diffusers encodes at once, whatever its step in time


class WanCodec(Codec):
    """The codec by hub id or local folder, frozen on arrival.

    Args:
        path: hub id or folder of an `AutoencoderKLWan`.
        subfolder: the codec's part of a pipeline folder.
        revision: git revision of a hub id.
    """

    def __init__(self, *, path: str, subfolder: str | None = None, revision: str | None = None) -> None:
        super().__init__()
        self._hold(load(AutoencoderKLWan, path, subfolder, revision), path)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Posterior of a clip: ``latents`` and ``latents_std``, ``[b c t' h w]``, unscaled."""
        return encode_clip(self.model, frames)

    def reconstruct(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``[b t c h w]`` through the posterior and back, and its KL divergence per sample ``[b]`` in nats per
        latent element. ``noise`` ``[b c t' h w]`` is standard normal, of the latents' shape."""
        refuse_count(self.model, frames.shape[1])
        posterior = self.model.encode(frames.transpose(1, 2)).latent_dist
        pixels = self.model.decode(posterior.mean + posterior.std * noise).sample.transpose(1, 2)
        self.note(posterior.mean)
        return pixels, nats(posterior).flatten(1).mean(1)

    def latent_shape(self, frames: Tensor) -> tuple[int, ...]:
        """Shape ``(c, t', h, w)`` of the latents of one clip of ``frames``."""
        config, (t, _, h, w) = self.model.config, frames.shape[1:]
        unit = config.scale_factor_spatial
        return config.z_dim, (t - 1) // config.scale_factor_temporal + 1, h // unit, w // unit

    def saved(self, dtype: torch.dtype) -> Any:
        """A codec trained from scratch gets the deviation of its own latents, by which `Wan` divides them."""
        model = super().saved(dtype)
        if self.path == "fresh":
            deviation = float(self.latent_square.sqrt())
            count = model.config.z_dim
            model.register_to_config(latents_mean=[0.0] * count, latents_std=[deviation] * count)
        return model


def step_of(model: Any) -> int:
    """Frames behind the first that a clip has a multiple of: those of a latent, and those that the codec encodes at
    once. It would leave out what does not fill a portion, silently."""
    return math.lcm(int(model.config.scale_factor_temporal), PORTION)


def refuse_count(model: Any, count: int) -> None:
    """Raises UserError for a number of frames that a codec cannot divide: it keeps the first by itself."""
    step = step_of(model)
    if count < 1 or count % step != 1:
        near = max(1, round((count - 1) / step) * step + 1)
        raise UserError("num_frames", str(count), f"one more than a multiple of {step}, by the codec", f"try {near}")


def encode_clip(model: Any, frames: Tensor, multiple: int | None = None) -> dict[str, Tensor]:
    """Posterior mean and deviation ``[b c t' h w]`` of frames ``[b t c h w]`` in [-1, 1].

    Args:
        model: an `AutoencoderKLWan`.
        frames: a clip.
        multiple: of pixels that height and width must be; None: the codec's own factor.

    Raises:
        UserError: a number of frames, a height or a width that it cannot divide.
    """
    refuse_count(model, frames.shape[1])
    refuse_uneven(frames, multiple or int(model.config.scale_factor_spatial))
    posterior = model.encode(frames.transpose(1, 2)).latent_dist
    return {"latents": posterior.mean, "latents_std": posterior.std}


def fresh(*, config: dict[str, Any]) -> WanCodec:
    """An untrained codec.

    Args:
        config: arguments of `AutoencoderKLWan`.
    """
    codec = WanCodec.__new__(WanCodec)
    nn.Module.__init__(codec)
    codec._hold(freeze(AutoencoderKLWan(**config)), "fresh")
    return codec
