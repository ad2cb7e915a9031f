"""Stable Diffusion (Rombach et al. 2022): text to image in a KL codec's latents, eps or v prediction.

Read from the folder's own configs: channels, scaling factor, noise schedule, prediction type.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from mmtrain.backbone.codec import encode_clip, factor
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.text import Memo, kept, tokenize
from mmtrain.backbone.weights import companion, digest, freeze, load, save_pipeline
from mmtrain.rng import Rng


class StableDiffusion(nn.Module):
    """Stable Diffusion by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``unet vae text_encoder tokenizer scheduler``.
        revision: git revision of a hub id.
        few_steps: sample by latent consistency, for what `objective.consistency` has trained.
    """

    makes, pipeline_class = "image", "StableDiffusionPipeline"
    presets: ClassVar = {
        "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
        "cross-attention": ["*.attn2.to_*"],
        "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*", "*.proj_in", "*.proj_out"],
    }

    def __init__(self, *, path: str, revision: str | None = None, few_steps: bool = False) -> None:
        super().__init__()
        self._hold(
            unet=load(UNet2DConditionModel, path, "unet", revision),
            vae=load(AutoencoderKL, path, "vae", revision),
            text_encoder=load(CLIPTextModel, path, "text_encoder", revision),
            tokenizer=companion(CLIPTokenizer, path, "tokenizer", revision),
            scheduler=companion(DDIMScheduler, path, "scheduler", revision),
            path=path,
        )
        self.few_steps |= few_steps

    def _hold(self, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, path: str) -> None:
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.scheduler, self.path = tokenizer, scheduler, path
        self.schedule = Discrete(scheduler.config)
        self.few_steps = scheduler.config.get("_class_name") == LCMScheduler.__name__  # a folder that we exported
        self._text = Memo(self._read)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the network was made for."""
        side = int(self.unet.config.sample_size) * factor(self.vae)
        return side, side

    @property
    def multiple(self) -> int:
        """Pixels that height and width are a multiple of, by the codec."""
        return factor(self.vae)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt that the text tower would cut."""
        tokenize(self.tokenizer, prompts, "cpu")

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
        [text] = self._text(kept(captions, drop_text), self.text_encoder.device)
        return {"text": text}

    def _read(self, caption: str) -> tuple[Tensor]:
        ids, _ = tokenize(self.tokenizer, [caption], self.text_encoder.device)
        return (self.text_encoder(ids).last_hidden_state[0],)

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output ``[b c h w]``, in the model's own prediction type."""
        return self.unet(noisy, level, encoder_hidden_states=condition["text"]).sample

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, config = self.unet.device, self.text_encoder.config
        shape = (batch, self.unet.config.in_channels, height // self.multiple, width // self.multiple)
        text = torch.empty(batch, config.max_position_embeddings, config.hidden_size, device=where)
        return torch.empty(shape, device=where), torch.zeros(batch, dtype=torch.long, device=where), {"text": text}

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": (LCMScheduler if self.few_steps else DDIMScheduler).from_config(self.scheduler.config),
        }

    def pipeline(self) -> StableDiffusionPipeline:
        """The vanilla pipeline around these very modules."""
        bare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**self.parts(), **bare)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A pipeline folder for `StableDiffusionPipeline.from_pretrained`, adapters merged."""
        save_pipeline(self, folder, dtype)


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
        tokenizer=companion(CLIPTokenizer, clip),
        scheduler=DDIMScheduler(**scheduler),
        path="fresh",
    )
    return model
