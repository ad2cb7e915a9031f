"""Stable Diffusion (Rombach et al. 2022): text to image in a KL codec's latents, eps or v prediction.

Read from the folder's own configs: channels, scaling factor, noise schedule, prediction type.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from mmtrain.adapter.lora import merged
from mmtrain.backbone.codec import encode_clip
from mmtrain.backbone.text import tokenize
from mmtrain.backbone.weights import copy_as, digest, freeze, load, write_manifest
from mmtrain.rng import Rng


class StableDiffusion(nn.Module):
    """Stable Diffusion by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``unet vae text_encoder tokenizer scheduler``.
        revision: git revision of a hub id.
    """

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        super().__init__()
        self._hold(
            unet=load(UNet2DConditionModel, path, "unet", revision),
            vae=load(AutoencoderKL, path, "vae", revision),
            text_encoder=load(CLIPTextModel, path, "text_encoder", revision),
            tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", revision=revision),
            scheduler=DDIMScheduler.from_pretrained(path, subfolder="scheduler", revision=revision),
            path=path,
        )

    def _hold(self, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, path: str) -> None:
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.scheduler, self.path = tokenizer, scheduler, path
        self.schedule = DDPMScheduler.from_config(scheduler.config)
        self._memo: dict[str, Tensor] = {}

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def base(self) -> dict[str, str]:
        return {"path": self.path, "digest": digest(self.unet, self.vae, self.text_encoder)}

    @property
    def encoder_id(self) -> str:
        return digest(self.vae.encoder, self.vae.quant_conv)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Posterior of the first frame: ``latents`` and ``latents_std``, ``[b 1 c h w]``, unscaled."""
        return encode_clip(self.vae, frames[:, :1])

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b c h w]`` drawn from the posterior, scaled."""
        mean, deviation = encoded["latents"][:, 0], encoded["latents_std"][:, 0]
        noise = rng.normal("posterior", mean.shape[1:]).to(mean.device)
        return (mean + deviation * noise) * self.vae.config.scaling_factor

    def condition(
        self, encoded: dict[str, Tensor], captions: Sequence[str], *, drop_text: Tensor, drop_image: Tensor
    ) -> dict[str, Tensor]:
        """Text tokens ``[b l d]``; a dropped caption is the empty one. There is no image conditioning to drop."""
        kept = ["" if drop else caption for caption, drop in zip(captions, drop_text.tolist(), strict=True)]
        return {"text": self._text(kept)}

    @torch.no_grad()
    def _text(self, captions: Sequence[str]) -> Tensor:
        if len(self._memo) > 50_000:
            self._memo.clear()
        for caption in {c: None for c in captions if c not in self._memo}:  # one by one, as the text tower reads them
            ids, _ = tokenize(self.tokenizer, [caption], self.text_encoder.device)
            self._memo[caption] = self.text_encoder(ids).last_hidden_state[0].cpu()
        return torch.stack([self._memo[c] for c in captions]).to(self.text_encoder.device)

    def draw_level(self, rng: Rng) -> Tensor:
        """Timesteps ``[b]``, uniform over the schedule (Ho et al. 2020)."""
        count = self.schedule.config.num_train_timesteps
        return (rng.spread("timestep") * count).long().clamp(max=count - 1)

    def noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return self.schedule.add_noise(latents, noise, level)

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output ``[b c h w]``, in the model's own prediction type."""
        return self.unet(noisy, level, encoder_hidden_states=condition["text"]).sample

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network predicts: the noise, or v = α·ε − σ·x (Salimans & Ho 2022)."""
        if self.schedule.config.prediction_type == "v_prediction":
            return self.schedule.get_velocity(latents, noise, level)
        return noise

    def weight(self, level: Tensor) -> Tensor:
        return torch.ones_like(level, dtype=torch.float32)

    def pipeline(self) -> StableDiffusionPipeline:
        """The vanilla pipeline around these very modules."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DDIMScheduler.from_config(self.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A pipeline folder for `StableDiffusionPipeline.from_pretrained`, adapters merged."""
        pipeline = self.pipeline()
        parts = {"unet": merged(self.unet), "vae": copy_as(self.vae, dtype)}
        parts |= {"text_encoder": copy_as(self.text_encoder, dtype)}
        parts["unet"] = parts["unet"].to(dtype)
        pipeline.register_modules(**parts)
        pipeline.save_pretrained(folder)
        write_manifest(folder)


def fresh(*, unet: dict[str, Any], scheduler: dict[str, Any], codec: str, clip: str) -> StableDiffusion:
    """An untrained Stable Diffusion on a given codec and text tower.

    Args:
        unet: arguments of `UNet2DConditionModel`; channels and text width are read from codec and tower.
        scheduler: arguments of `DDIMScheduler`.
        codec: folder of an `AutoencoderKL`.
        clip: folder of a CLIP model.
    """
    vae = load(AutoencoderKL, codec)
    text = load(CLIPTextModel, clip, unused=("vision_model.", "logit_scale", "visual_projection", "text_projection"))
    network = UNet2DConditionModel(
        **unet,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        cross_attention_dim=text.config.hidden_size,
    )
    model = StableDiffusion.__new__(StableDiffusion)
    nn.Module.__init__(model)
    model._hold(
        unet=freeze(network),
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(clip),
        scheduler=DDIMScheduler(**scheduler),
        path="fresh",
    )
    return model
