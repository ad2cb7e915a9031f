"""Stable Video Diffusion (Blattmann et al. 2023): image to video, EDM's continuous noise levels.

What the published model does, read from its pipeline: the first frame conditions twice, as one CLIP token in every
cross-attention and as unscaled latents beside each noisy frame; fps − 1, motion bucket and noise augmentation enter as
numbers. A `Bridge` adapter puts text in the place of the image token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from mmtrain.backbone.codec import encode_clip, factor
from mmtrain.backbone.inflate import inflate
from mmtrain.backbone.pipelined import Pipelined
from mmtrain.backbone.schedule import Continuous, Discrete, wide
from mmtrain.backbone.text import TextTower
from mmtrain.backbone.weights import companion, digest, freeze, load
from mmtrain.errors import UserError
from mmtrain.rng import Rng, key

FPS, MOTION_BUCKET, NOISE_AUG = 7, 127, 0.02  # the pipeline's own defaults
MODULATED = ".time_emb_proj"
CLIP_SIDE = 224  # pixels; fixed in the pipeline
CLIP_PARTS = ("vision_model.", "text_model.", "logit_scale", "visual_projection", "text_projection")


class StableVideoDiffusion(Pipelined):
    """Stable Video Diffusion by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``unet vae image_encoder feature_extractor scheduler``.
        text_path: CLIP whose text tower shares the image encoder's space, for adapters that bring text; None without.
        text_layer: layer of that tower whose tokens adapters read, as for `TextTower`.
        revision: git revision of a hub id.
        sigma_mean, sigma_std: of the log-normal draw of noise levels in training (0.7 and 1.6 in the paper).
    """

    makes, pipeline_class = "video", "StableVideoDiffusionPipeline"
    time_axis = 1
    digested = ("unet", "vae", "image_encoder")
    only_encode = encoders = ("vae", "image_encoder")
    presets: ClassVar = {
        # With one conditioning token cross-attention's q and k have no effect: they are in no preset.
        "attention": ["*.attn1.to_*", "*.attn2.to_v", "*.attn2.to_out.0"],
        "temporal": ["*.temporal_transformer_blocks.*.attn1.to_*", "*.temporal_transformer_blocks.*.ff*.net.*"]
        + ["*.temporal_transformer_blocks.*.attn2.to_v", "*.temporal_transformer_blocks.*.attn2.to_out.0"],
        "temporal-up": ["up_blocks.*.temporal_transformer_blocks.*.attn1.to_*"]
        + [
            "up_blocks.*.temporal_transformer_blocks.*.ff*.net.*",
            "up_blocks.*.temporal_transformer_blocks.*.attn2.to_v",
        ]
        + ["up_blocks.*.temporal_transformer_blocks.*.attn2.to_out.0"],
        "spatial": ["*.transformer_blocks.*.attn1.to_*", "*.transformer_blocks.*.attn2.to_v"]
        + ["*.transformer_blocks.*.attn2.to_out.0"],
        "all-linear": ["*.attn1.to_*", "*.attn2.to_v", "*.attn2.to_out.0", "*.ff*.net.*", "*.proj_in", "*.proj_out"],
    }

    def __init__(
        self,
        *,
        path: str,
        text_path: str | None = None,
        text_layer: int = -1,
        revision: str | None = None,
        sigma_mean: float = 0.7,
        sigma_std: float = 1.6,
    ) -> None:
        super().__init__()
        self._hold(
            unet=load(UNetSpatioTemporalConditionModel, path, "unet", revision),
            vae=load(AutoencoderKLTemporalDecoder, path, "vae", revision),
            image_encoder=load(CLIPVisionModelWithProjection, path, "image_encoder", revision),
            processor=companion(CLIPImageProcessorPil, path, "feature_extractor", revision),
            scheduler=companion(EulerDiscreteScheduler, path, "scheduler", revision),
            path=path,
            sigma=(sigma_mean, sigma_std),
            text=None if text_path is None else text_tower(text_path, text_layer),
        )

    def _hold(
        self,
        *,
        unet: Any,
        vae: Any,
        image_encoder: Any,
        processor: Any,
        scheduler: Any,
        path: str,
        sigma: tuple[float, float],
        text: TextTower | None = None,
    ) -> None:
        self.unet: Any = unet
        self.vae: Any = vae
        self.image_encoder: Any = image_encoder
        self.processor, self.scheduler, self.path = processor, scheduler, path
        self.schedule = Continuous(mean=sigma[0], deviation=sigma[1])
        self.text: TextTower | None = text
        self.bridge: Any = None

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the network was made for."""
        side = int(self.unet.config.sample_size) * factor(self.vae)
        return side, side

    @property
    def conditioning_width(self) -> int:
        """Width of a cross-attention token."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def modulated(self) -> dict[str, int]:
        """By name, the layers by which residual blocks read noise level and micro-conditioning, and their widths."""
        layers = {n: m for n, m in self.unet.named_modules() if n.endswith(MODULATED)}
        return {name: int(layer.out_features) for name, layer in layers.items()}

    @property
    def encoder_id(self) -> str:
        return digest(self.vae.encoder, self.vae.quant_conv, self.image_encoder)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """What is frozen of a clip ``[b t c h w]``: ``latents`` and ``latents_std`` ``[b t c h w]``, unscaled;
        ``image_latents [b c h w]`` of the noise-augmented first frame; ``image_embeds [b d]`` of the first frame and
        ``video_embeds [b d]``, the mean over first, middle and last."""
        shown = frames[:, [0, frames.shape[1] // 2, -1]]
        embeds = self.embed(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
        first = frames[:, 0]
        seeds = (torch.Generator().manual_seed(key(f.cpu().numpy().tobytes().hex())) for f in first)
        noise = torch.stack([torch.randn(first.shape[1:], generator=g) for g in seeds]).to(first.device)
        image_latents = self.vae.encode(first + NOISE_AUG * noise).latent_dist.mode()
        return {
            **encode_clip(self.vae, frames),
            "image_latents": image_latents,
            "image_embeds": embeds[:, 0],
            "video_embeds": embeds.mean(1),
        }

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """CLIP embeddings ``[b d]`` of images ``[b c h w]`` in [-1, 1], prepared as the pipeline prepares them."""
        resized = _resize_with_antialiasing(images, (CLIP_SIDE, CLIP_SIDE)) / 2 + 0.5
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in self._normalisation())
        return self.image_encoder((resized - mean) / std).image_embeds

    def _normalisation(self) -> tuple[list[float], list[float]]:
        return self.processor.image_mean, self.processor.image_std

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b t c h w]`` drawn from the posterior, scaled."""
        mean = encoded["latents"]
        noise = rng.normal("posterior", mean.shape[1:]).to(mean.device)
        return (mean + encoded["latents_std"] * noise) * self.vae.config.scaling_factor

    def condition(
        self, encoded: dict[str, Tensor], captions: Sequence[str], *, drop_text: Tensor, drop_image: Tensor
    ) -> dict[str, Tensor]:
        """Cross-attention tokens ``[b n d]``, the first frame's latents ``[b c h w]`` and, with a bridge, the
        captions' ``code`` ``[b k]``.

        With a bridge the tokens come from the captions, a dropped one being empty; without, they are the image's
        embedding, and zeros where dropped. Dropped image latents are zeros.
        """
        image_latents = encoded["image_latents"]
        keep_image = (~drop_image).to(image_latents).view(-1, 1, 1, 1)
        if self.bridge is not None:
            kept = ["" if drop else caption for caption, drop in zip(captions, drop_text.tolist(), strict=True)]
            conditioning = {"tokens": self.text_tokens(kept), "code": self.text_code(kept)}
        else:
            kept_text = (~drop_text).to(image_latents).view(-1, 1, 1)
            conditioning = {"tokens": encoded["image_embeds"][:, None] * kept_text}
        return {**conditioning, "image_latents": image_latents * keep_image}

    def text_tokens(self, captions: Sequence[str]) -> Tensor:
        """Conditioning tokens ``[b n d]`` of captions: the bridge's, or the text tower's own embedding without one.

        Raises:
            UserError: no text tower was given.
        """
        if self.text is None:
            raise UserError(
                "backbone.text_path", "null", "the CLIP whose text tower reads the prompts", "give its path"
            )
        text = self.text(captions)
        return text.embeds[:, None] if self.bridge is None else self.bridge(text)

    def text_code(self, captions: Sequence[str]) -> Tensor:
        """Codes ``[b k]`` of captions, by which the bridge steers the network; an empty one steers nowhere.

        What the tower makes of no words is like some caption or other, and guidance would steer away from that one.
        """
        assert self.bridge is not None
        assert self.text is not None
        code: Tensor = self.bridge.code(self.text(captions))
        said = torch.tensor([bool(caption.strip()) for caption in captions], device=code.device)
        return code * said[:, None]

    def alignment(self, condition: dict[str, Tensor], encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What a contrastive term compares, ``[b d]`` each: the conditioning's mean token, the clip's embedding."""
        return condition["tokens"].mean(1), encoded["video_embeds"]

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Denoised latents ``[b t c h w]``.

        D(x; σ) = x / (σ² + 1) − σ / √(σ² + 1) · F(x / √(σ² + 1), ¼ ln σ): EDM's preconditioning with σ_data = 1, which
        is v prediction.
        """
        sigma = wide(level, noisy)
        scaled = noisy / (sigma**2 + 1).sqrt()
        frames = noisy.shape[1]
        image = condition["image_latents"][:, None].expand(-1, frames, -1, -1, -1)
        facts = torch.tensor([FPS - 1, MOTION_BUCKET, NOISE_AUG], device=noisy.device).expand(len(noisy), 3)
        with steered(self.unet, self.bridge, condition.get("code")):
            output = self.unet(
                torch.cat([scaled, image], 2), 0.25 * level.log(), condition["tokens"], added_time_ids=facts
            ).sample
        return noisy / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, unit, channels = self.unet.device, factor(self.vae), int(self.unet.config.out_channels)
        tokens = 1 if self.bridge is None else self.bridge.tokens
        shape = (channels, height // unit, width // unit)
        condition = {"tokens": torch.empty(batch, tokens, self.conditioning_width, device=where)}
        condition |= {"image_latents": torch.empty(batch, *shape, device=where)}
        if self.bridge is not None:
            condition["code"] = torch.empty(batch, self.bridge.code_width, device=where)
        return torch.empty(batch, frames, *shape, device=where), torch.ones(batch, device=where), condition

    def encoded_size(self, frames: int, height: int, width: int) -> int:
        """Numbers that `encode` gives of a clip: its latents, those of its first frame, and two embeddings."""
        first = self.example(1, frames, height, width)[2]["image_latents"].numel()
        embeds = 2 * int(self.image_encoder.config.projection_dim)
        return super().encoded_size(frames, height, width) + first + embeds

    def pipeline(self) -> StableVideoDiffusionPipeline:
        """The vanilla pipeline around these very modules."""
        return StableVideoDiffusionPipeline(**self.parts())

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""
        return {
            "vae": self.vae,
            "image_encoder": self.image_encoder,
            "unet": self.unet,
            "scheduler": EulerDiscreteScheduler.from_config(self.scheduler.config),
            "feature_extractor": self.processor,
        }


_STEERING: ContextVar[dict[str, Tensor]] = ContextVar("steering")
"""By residual block, what is added to its time embedding now. A block that is computed again in the backward pass sees
what it saw at first (`recompute.py`), which a hook that is gone by then would not show it."""


@contextmanager
def steered(unet: Any, bridge: Any, code: Tensor | None) -> Iterator[None]:
    """A network whose residual blocks a bridge steers by codes ``[b k]`` for a while; None leaves it alone."""
    added = {} if code is None else bridge.steer(code)
    for name in added:
        layer = unet.get_submodule(name)
        if not any(isinstance(hook, _Steered) for hook in layer._forward_hooks.values()):
            layer.register_forward_hook(_Steered(name))
    token = _STEERING.set(added)
    try:
        yield
    finally:
        _STEERING.reset(token)


class _Steered:
    """Adds a vector ``[b c]`` of each sample to a layer's output, ``[b t c]`` in temporal blocks and ``[b·t c]`` in
    spatial ones; leaves it alone where the network is not steered."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, layer: Any, inputs: Any, out: Tensor) -> Tensor:
        what = _STEERING.get({}).get(self.name)
        if what is None:
            return out
        if out.ndim == 3:
            return out + what[:, None].to(out)
        return out + what.repeat_interleave(len(out) // len(what), 0).to(out)


def text_tower(path: str, layer: int = -1) -> TextTower:
    """The frozen text tower of a CLIP folder or hub id."""
    unused = tuple(part for part in CLIP_PARTS if not part.startswith("text_"))
    model = load(CLIPTextModelWithProjection, path, unused=unused)
    return TextTower(tokenizer=companion(CLIPTokenizer, path), model=model, layer=layer)


def fresh(
    *,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    codec: str,
    clip: str,
    num_frames: int,
    sd: str | None = None,
    sigma_mean: float = 0.7,
    sigma_std: float = 1.6,
) -> StableVideoDiffusion:
    """An untrained Stable Video Diffusion on a given video codec and CLIP.

    Args:
        unet: arguments of `UNetSpatioTemporalConditionModel`; channels and token width are read from codec and CLIP.
        scheduler: arguments of `EulerDiscreteScheduler`.
        codec: folder of an `AutoencoderKLTemporalDecoder`.
        clip: folder of a CLIP model.
        num_frames: of a clip.
        sd: pipeline folder of a Stable Diffusion that it starts from (`inflate`), as the published one did.
        sigma_mean, sigma_std: as for `StableVideoDiffusion`.

    Raises:
        UserError: a Stable Diffusion of other widths, or that does not predict v.
    """
    vae = load(AutoencoderKLTemporalDecoder, codec)
    unused = tuple(part for part in CLIP_PARTS if not part.startswith("vis"))
    image_encoder = load(CLIPVisionModelWithProjection, clip, unused=unused)
    network = UNetSpatioTemporalConditionModel(
        **unet,
        in_channels=2 * vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        cross_attention_dim=image_encoder.config.projection_dim,
        projection_class_embeddings_input_dim=3 * unet["addition_time_embed_dim"],
        num_frames=num_frames,
    )
    if sd is not None:
        schedule = Discrete(companion(DDIMScheduler, sd, "scheduler").config)
        inflate(network, load(UNet2DConditionModel, sd, "unet"), schedule)
    model = StableVideoDiffusion.__new__(StableVideoDiffusion)
    nn.Module.__init__(model)
    model._hold(
        unet=freeze(network),
        vae=vae,
        image_encoder=image_encoder,
        processor=companion(CLIPImageProcessorPil, clip),
        scheduler=EulerDiscreteScheduler(**scheduler),
        path="fresh",
        sigma=(sigma_mean, sigma_std),
    )
    return model
