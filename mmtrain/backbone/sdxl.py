"""Stable Diffusion XL (Podell et al. 2023): text to image with two text towers and the picture's size as a condition.

Read from the folder's own configs: channels, scaling factor, noise schedule, prediction type (eps or v), and whether
the unconditional branch is zeros or the empty prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mmtrain.backbone.codec import factor
from mmtrain.backbone.pipelined import LatentDiffusion
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.text import kept, tokenize
from mmtrain.backbone.weights import companion, freeze, index, load


class StableDiffusionXL(LatentDiffusion):
    """Stable Diffusion XL by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``unet vae text_encoder text_encoder_2 tokenizer tokenizer_2 scheduler``.
        revision: git revision of a hub id.
    """

    makes, pipeline_class = "image", "StableDiffusionXLPipeline"
    digested = ("unet", "vae", "text_encoder", "text_encoder_2")

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

    def _hold(self, *, towers: list[Any], tokenizers: list[Any], scheduler: Any, zeros: bool, **parts: Any) -> None:
        super()._latent(text_encoder=towers[0], tokenizer=tokenizers[0], **parts)
        self.text_encoder_2: Any = towers[1]
        self.tokenizer_2, self.scheduler, self.zeros = tokenizers[1], scheduler, zeros
        self.schedule = Discrete(scheduler.config)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt that a text tower would cut."""
        for tokenizer in (self.tokenizer, self.tokenizer_2):
            tokenize(tokenizer, prompts, "cpu")

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
        latents, level = self.outline(batch, height, width)
        pooled = torch.empty(batch, self.text_encoder_2.config.projection_dim, device=self.unet.device)
        sizes = torch.empty(batch, 6, device=self.unet.device)
        return latents, level, {"text": self.outlined_text(batch), "pooled": pooled, "sizes": sizes}

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
