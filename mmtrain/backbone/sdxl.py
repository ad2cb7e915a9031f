"""Stable Diffusion XL (Podell et al. 2023): text to image with two text towers and the picture's size as a condition.

Read from the folder's own configs: channels, scaling factor, noise schedule, prediction type (eps or v), and whether
the unconditional branch is zeros or the empty prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mmtrain.backbone.codec import encode_clip, factor
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.text import Memo, kept, tokenize
from mmtrain.backbone.weights import companion, digest, freeze, index, load, save_pipeline
from mmtrain.rng import Rng


class StableDiffusionXL(nn.Module):
    """Stable Diffusion XL by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``unet vae text_encoder text_encoder_2 tokenizer tokenizer_2 scheduler``.
        revision: git revision of a hub id.
    """

    makes, pipeline_class = "image", "StableDiffusionXLPipeline"
    presets: ClassVar = {
        "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
        "cross-attention": ["*.attn2.to_*"],
        "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*", "*.proj_in", "*.proj_out"],
    }

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        super().__init__()
        self._hold(
            unet=load(UNet2DConditionModel, path, "unet", revision),
            vae=load(AutoencoderKL, path, "vae", revision),
            towers=[
                load(CLIPTextModel, path, "text_encoder", revision),
                load(CLIPTextModelWithProjection, path, "text_encoder_2", revision),
            ],
            tokenizers=[companion(CLIPTokenizer, path, name, revision) for name in ("tokenizer", "tokenizer_2")],
            scheduler=companion(EulerDiscreteScheduler, path, "scheduler", revision),
            zeros=bool(index(StableDiffusionXLPipeline, path, revision)["force_zeros_for_empty_prompt"]),
            path=path,
        )

    def _hold(
        self, *, unet: Any, vae: Any, towers: list[Any], tokenizers: list[Any], scheduler: Any, zeros: bool, path: str
    ) -> None:
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder, self.text_encoder_2 = towers
        self.tokenizer, self.tokenizer_2 = tokenizers
        self.scheduler, self.zeros, self.path = scheduler, zeros, path
        self.schedule = Discrete(scheduler.config)
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
        """Raises UserError for a prompt that a text tower would cut."""
        for tokenizer in (self.tokenizer, self.tokenizer_2):
            tokenize(tokenizer, prompts, "cpu")

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def base(self) -> dict[str, str]:
        parts = (self.unet, self.vae, self.text_encoder, self.text_encoder_2)
        return {"path": self.path, "digest": digest(*parts)}

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
        """Both towers' tokens ``[b l d]``, the second's ``pooled [b d]``, and the sizes ``[b 6]``.

        A dropped caption is what the pipeline's unconditional branch is: zeros, or the empty one. The picture counts as
        uncropped, and as large as it is trained at: the numbers that the pipeline asks for by default.
        """
        device = self.unet.device
        text, pooled = self._text(kept(captions, drop_text), device)
        if self.zeros:
            keep = (~drop_text).to(text)
            text, pooled = text * keep[:, None, None], pooled * keep[:, None]
        height, width = (side * factor(self.vae) for side in encoded["latents"].shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=device, dtype=text.dtype)
        return {"text": text, "pooled": pooled, "sizes": sizes.expand(len(text), 6)}

    def _read(self, caption: str) -> tuple[Tensor, Tensor]:
        """Tokens of each tower's last layer but one, side by side, and the second tower's projection."""
        ids, ids_2 = (tokenize(t, [caption], self.unet.device)[0] for t in (self.tokenizer, self.tokenizer_2))
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)[0], second.text_embeds[0]

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output ``[b c h w]``, in the model's own prediction type."""
        added = {"text_embeds": condition["pooled"], "time_ids": condition["sizes"]}
        return self.unet(noisy, level, encoder_hidden_states=condition["text"], added_cond_kwargs=added).sample

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, config = self.unet.device, self.text_encoder_2.config
        shape = (batch, self.unet.config.in_channels, height // self.multiple, width // self.multiple)
        text = torch.empty(batch, config.max_position_embeddings, self.unet.config.cross_attention_dim, device=where)
        pooled = torch.empty(batch, config.projection_dim, device=where)
        condition = {"text": text, "pooled": pooled, "sizes": torch.empty(batch, 6, device=where)}
        return torch.empty(shape, device=where), torch.zeros(batch, dtype=torch.long, device=where), condition

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "tokenizer": self.tokenizer,
            "tokenizer_2": self.tokenizer_2,
            "unet": self.unet,
            "scheduler": EulerDiscreteScheduler.from_config(self.scheduler.config),
        }

    def pipeline(self) -> StableDiffusionXLPipeline:
        """The vanilla pipeline around these very modules."""
        how = {"force_zeros_for_empty_prompt": self.zeros, "add_watermarker": False}
        return StableDiffusionXLPipeline(**self.parts(), **how)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A pipeline folder for `StableDiffusionXLPipeline.from_pretrained`, adapters merged."""
        save_pipeline(self, folder, dtype)


def fresh(*, unet: dict[str, Any], scheduler: dict[str, Any], codec: str, clip: str) -> StableDiffusionXL:
    """An untrained Stable Diffusion XL on a given codec, with one CLIP's text tower in both places.

    Args:
        unet: arguments of `UNet2DConditionModel`; channels and text widths are read from codec and tower.
        scheduler: arguments of `EulerDiscreteScheduler`.
        codec: folder of an `AutoencoderKL`.
        clip: folder of a CLIP model.
    """
    vae = load(AutoencoderKL, codec)
    image = ("vision_model.", "logit_scale", "visual_projection")
    first = load(CLIPTextModel, clip, unused=(*image, "text_projection"))
    second = load(CLIPTextModelWithProjection, clip, unused=image)
    network = UNet2DConditionModel(
        **unet,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        cross_attention_dim=first.config.hidden_size + second.config.hidden_size,
        addition_embed_type="text_time",
        projection_class_embeddings_input_dim=6 * unet["addition_time_embed_dim"] + second.config.projection_dim,
    )
    model = StableDiffusionXL.__new__(StableDiffusionXL)
    nn.Module.__init__(model)
    model._hold(
        unet=freeze(network),
        vae=vae,
        towers=[first, second],
        tokenizers=[companion(CLIPTokenizer, clip) for _ in range(2)],
        scheduler=EulerDiscreteScheduler(**scheduler),
        zeros=True,
        path="fresh",
    )
    return model
