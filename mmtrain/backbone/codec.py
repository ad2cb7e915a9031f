"""KL codecs (Rombach et al. 2022): pixels to latents and back, for images, and with a temporal decoder for video.

`KLCodec` is trained from scratch or tuned on its own; `temporal_from` turns one into the video codec of Stable Video
Diffusion, whose decoder starts as the image decoder, frame by frame, to the bit.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from mmtrain.backbone.weights import copy_as, digest, freeze, load, write_manifest
from mmtrain.errors import UserError

AT_ONCE = 2**22
"""Pixels that a codec encodes at once: sixteen frames of 512 × 512."""


class Codec(nn.Module, ABC):
    """What every codec has, whatever its latents are; a family adds `encode`, which is cached, and `reconstruct`."""

    def _hold(self, model: Any, path: str) -> None:
        self.model: Any = model
        self.path = path
        self.latent_square: Tensor
        self.register_buffer("latent_square", torch.tensor(1.0), persistent=False)

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def base(self) -> dict[str, str]:
        return {"path": self.path, "digest": digest(self.model)}

    @property
    def encoder_id(self) -> str:
        return digest(self.model.encoder, self.model.quant_conv)

    @abstractmethod
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """What a clip ``[b t c h w]`` in [-1, 1] is encoded to, first axis b."""

    @abstractmethod
    def reconstruct(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``[b t c h w]`` through the latents and back, and what they are penalised for, ``[b]``. ``noise`` is
        standard normal, ``[b, *latent_shape]``."""

    def latent_shape(self, frames: Tensor) -> tuple[int, ...]:
        """Shape ``(t, c, h, w)`` of the latents of one clip of ``frames``."""
        t, _, h, w = frames.shape[1:]
        return t, self.model.config.latent_channels, h // factor(self.model), w // factor(self.model)

    @torch.no_grad()
    def note(self, latents: Tensor) -> None:
        """Keep the running mean square of the latents while a codec trains: its inverse root is the scaling factor."""
        if self.training:
            self.latent_square.lerp_(latents.square().mean(), 0.01)

    def saved(self, dtype: torch.dtype) -> Any:
        """The model as it is written."""
        return copy_as(self.model, dtype)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A folder that the model's own class opens."""
        self.saved(dtype).save_pretrained(folder)
        write_manifest(folder)


class KLCodec(Codec):
    """A KL codec by hub id or local folder, frozen on arrival.

    Args:
        path: hub id or folder of an `AutoencoderKL`, or of an `AutoencoderKLTemporalDecoder` with ``temporal=True``.
        subfolder: the codec's part of a pipeline folder.
        temporal: which of the two classes to open.
    """

    def __init__(self, *, path: str, subfolder: str | None = None, temporal: bool = False) -> None:
        super().__init__()
        cls = AutoencoderKLTemporalDecoder if temporal else AutoencoderKL
        self._hold(load(cls, path, subfolder), path)

    @property
    def temporal(self) -> bool:
        return isinstance(self.model, AutoencoderKLTemporalDecoder)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Mean and deviation of the posterior over a clip's latents, ``[b t c h w]`` each, unscaled."""
        return encode_clip(self.model, frames)

    def reconstruct(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``[b t c h w]`` through the posterior and back, and its KL divergence per sample ``[b]`` in nats per
        latent element. ``noise`` ``[b t c' h' w']`` is standard normal, of the latents' shape."""
        b, t = frames.shape[:2]
        posterior = self.model.encode(frames.flatten(0, 1)).latent_dist
        latents = posterior.mean + posterior.std * noise.flatten(0, 1)
        more = {"num_frames": t} if self.temporal else {}
        pixels = self.model.decode(latents, **more).sample.unflatten(0, (b, t))
        self.note(posterior.mean)
        return pixels, nats(posterior).unflatten(0, (b, t)).flatten(1).mean(1)

    def saved(self, dtype: torch.dtype) -> Any:
        """A codec trained from scratch gets the scaling factor 1 / rms of its own latents, as section 3.3 of Rombach et
        al. chooses it."""
        model = super().saved(dtype)
        if self.path == "fresh":
            model.register_to_config(scaling_factor=float(self.latent_square.rsqrt()))
        return model


def nats(posterior: Any) -> Tensor:
    """KL divergence of each latent element from a unit normal."""
    return 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar)


def factor(model: Any) -> int:
    """Pixels a side to one latent."""
    return int(2 ** (len(model.config.block_out_channels) - 1))


def refuse_uneven(frames: Tensor, unit: int) -> None:
    """Raises UserError for frames ``[… h w]`` whose sides are no multiples of a codec's unit in pixels."""
    height, width = frames.shape[-2:]
    if height % unit or width % unit:
        came = f"frames of {height} × {width} pixels"
        near = max(unit, round(min(height, width) / unit) * unit)
        raise UserError("codec", came, f"multiples of {unit}, which it divides by", f"try dataset.size={near}")


def encode_clip(model: Any, frames: Tensor) -> dict[str, Tensor]:
    """Posterior mean and deviation of frames ``[b t c h w]`` in [-1, 1].

    Raises:
        UserError: a height or width that the codec cannot divide; it would cut the rest off.
    """
    refuse_uneven(frames, factor(model))
    b, t = frames.shape[:2]
    found = [model.encode(part).latent_dist for part in in_portions(frames.flatten(0, 1))]
    return {
        "latents": torch.cat([posterior.mean for posterior in found]).unflatten(0, (b, t)),
        "latents_std": torch.cat([posterior.std for posterior in found]).unflatten(0, (b, t)),
    }


def in_portions(frames: Tensor) -> tuple[Tensor, ...]:
    """Frames ``[n c h w]`` in as many portions as memory wants: a codec's own memory grows with the pixels it sees."""
    height, width = frames.shape[-2:]
    return frames.split(max(1, AT_ONCE // (height * width)))


def fresh(*, channels: list[int], latent_channels: int, layers: int, groups: int, side: int) -> KLCodec:
    """An untrained image codec that `temporal_from` can turn into a video codec.

    Diffusers' temporal decoder of one layer has a middle of one residual block and no attention, where the image
    decoder has a second block and attention: these start silent here, and a recipe that wants a video codec of one
    layer keeps them frozen.

    Args:
        channels: of each level; a level halves the resolution, save the last.
        latent_channels: of the latents.
        layers: residual blocks per level.
        groups: of the group norms; the temporal decoder's are always 32.
        side: of the training images in pixels.
    """
    model = AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=latent_channels,
        layers_per_block=layers,
        norm_num_groups=groups,
        sample_size=side,
        scaling_factor=1.0,
        use_post_quant_conv=False,
    ).to(memory_format=torch.channels_last)
    _initialise(model)
    codec = KLCodec.__new__(KLCodec)
    nn.Module.__init__(codec)
    codec._hold(freeze(model), "fresh")
    return codec


def _initialise(model: Any) -> None:
    """Convolutions that keep the variance (He et al. 2015, gain 1), residual branches that start at zero (Zhang et al.
    2019). With torch's own initialisation each convolution shrinks its signal by 0.58, and this codec stood at 11 dB
    after 200 steps where it now stands at 14 (recipes/LOG.md)."""
    for name, weight in model.named_parameters():
        if weight.ndim == 4 and ".conv2." not in name:
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
        elif ".conv2." in name or (name.endswith("bias") and "norm" not in name):
            nn.init.zeros_(weight)
    for silent in _silent(model):
        nn.init.zeros_(silent)


def _silent(image: Any) -> list[Tensor]:
    """Weights whose zeros make the image decoder's second middle block and its attention pass their input on."""
    middle = image.decoder.mid_block
    return [*middle.resnets[1].conv2.parameters(), *middle.attentions[0].to_out[0].parameters()]


def temporal_from(*, path: str) -> KLCodec:
    """The video codec of an image codec: its encoder, and a temporal decoder that starts as the image decoder.

    The temporal residuals start at zero and the last temporal convolution as the identity, so that frames decode as
    they did before, until training makes neighbours agree.
    """
    image = load(AutoencoderKL, path)
    config = image.config
    video = AutoencoderKLTemporalDecoder(
        block_out_channels=tuple(config.block_out_channels),
        down_block_types=tuple(config.down_block_types),
        latent_channels=config.latent_channels,
        layers_per_block=config.layers_per_block,
        sample_size=config.sample_size,
        scaling_factor=config.scaling_factor,
        force_upcast=False,
    )
    _copy_frames_decoder(image, video)
    codec = KLCodec.__new__(KLCodec)
    nn.Module.__init__(codec)
    codec._hold(freeze(video), path)
    return codec


def _copy_frames_decoder(image: Any, video: Any) -> None:
    """Fill the video codec from the image codec; strict in both directions. Outlines have no weights to copy."""
    if image.device.type == "meta":
        return
    source, target = image.state_dict(), video.state_dict()
    for name in target:
        spatial = name.replace(".spatial_res_block.", ".")
        if ".temporal_res_block.conv2." in name or name == "decoder.time_conv_out.bias":
            target[name] = torch.zeros_like(target[name])
        elif name == "decoder.time_conv_out.weight":
            target[name] = nn.init.dirac_(torch.empty_like(target[name]))
        elif spatial in source:
            target[name] = source.pop(spatial)
    middle = ("decoder.mid_block.resnets.1.", "decoder.mid_block.attentions.0.")
    unmatched = [name for name in source if not name.startswith(middle)]
    if unmatched or (source and any(bool(w.count_nonzero()) for w in _silent(image))):
        raise UserError(
            f"image codec {image.config._name_or_path}",
            f"it has weights that a temporal decoder has no place for: {sorted(source)[:3]}",
            "an image codec made for a temporal decoder",
            "train it with the recipe pretrain_codec, which keeps those weights silent",
        )
    video.load_state_dict(target, strict=True)
