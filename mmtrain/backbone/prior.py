"""The prior of DALL-E 2 (Ramesh et al. 2022, section 2.2): a text's CLIP embedding to an image's CLIP embedding.

With Stable Video Diffusion, whose cross-attention reads an image embedding, it is the unCLIP way from text to video:
`mmtrain sample SVD --prior PRIOR`. Held in the hub's own layout, that of `KandinskyPriorPipeline`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import KandinskyPriorPipeline, PriorTransformer, UnCLIPScheduler
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from mmtrain.backbone.clip import prepare
from mmtrain.backbone.pipelined import Pipelined
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.text import TextTower, kept, tokenize
from mmtrain.backbone.weights import companion, digest, freeze, load
from mmtrain.errors import UserError
from mmtrain.rng import Rng


class Prior(Pipelined):
    """A prior by hub id or local folder, frozen on arrival.

    Args:
        path: folder with ``prior text_encoder image_encoder tokenizer image_processor scheduler``.
        revision: git revision of a hub id.
    """

    makes, pipeline_class = "embedding", "KandinskyPriorPipeline"
    digested = ("prior", "text_encoder", "image_encoder")
    encoders = ("image_encoder",)
    presets: ClassVar = {
        "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
        "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*"],
    }

    def __init__(self, *, path: str, revision: str | None = None) -> None:
        super().__init__()
        self._hold(
            prior=load(PriorTransformer, path, "prior", revision),
            text_encoder=load(CLIPTextModelWithProjection, path, "text_encoder", revision),
            image_encoder=load(CLIPVisionModelWithProjection, path, "image_encoder", revision),
            tokenizer=companion(CLIPTokenizer, path, "tokenizer", revision),
            processor=companion(CLIPImageProcessorPil, path, "image_processor", revision),
            scheduler=companion(UnCLIPScheduler, path, "scheduler", revision),
            path=path,
        )

    def _hold(
        self,
        *,
        prior: Any,
        text_encoder: Any,
        image_encoder: Any,
        tokenizer: Any,
        processor: Any,
        scheduler: Any,
        path: str,
    ) -> None:
        self.prior: Any = prior
        self.image_encoder: Any = image_encoder
        self.text = TextTower(tokenizer=tokenizer, model=text_encoder)
        self.processor, self.scheduler, self.path = processor, scheduler, path
        self.schedule = Discrete(scheduler.config)

    @property
    def network(self) -> nn.Module:
        return self.prior

    @property
    def text_encoder(self) -> nn.Module:
        return self.text.model

    @property
    def encoder_id(self) -> str:
        return digest(self.image_encoder)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt that the text tower would cut."""
        tokenize(self.text.tokenizer, prompts, "cpu")

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """CLIP embedding of the first frame: ``image_embeds [b d]``, not normalised."""
        pixels = prepare(frames[:, 0], self.image_encoder.config.image_size, self.processor)
        return {"image_embeds": self.image_encoder(pixels).image_embeds}

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Embeddings ``[b d]`` in the network's own units: less the mean, over the deviation, that its weights hold."""
        return (encoded["image_embeds"] - self.prior.clip_mean.detach()) / self.prior.clip_std.detach()

    def condition(
        self, encoded: dict[str, Tensor], captions: Sequence[str], *, drop_text: Tensor, drop_image: Tensor
    ) -> dict[str, Tensor]:
        """Text tokens ``[b l d]``, their ``mask [b l]`` and the text's own embedding ``[b d]``."""
        text = self.text(kept(captions, drop_text))
        return {"text": text.tokens, "mask": text.mask, "embeds": text.embeds}

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output ``[b d]``: the clean embedding, in the published models."""
        return self.prior(
            noisy,
            level,
            proj_embedding=condition["embeds"],
            encoder_hidden_states=condition["text"],
            attention_mask=condition["mask"],
        ).predicted_image_embedding

    def alignment(self, condition: dict[str, Tensor], encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What a contrastive term compares, ``[b d]`` each: the text's embedding, the image's."""
        return condition["embeds"], encoded["image_embeds"]

    def encoded_size(self, frames: int, height: int, width: int) -> int:
        """Numbers that `encode` gives of a sample: one embedding."""
        return self.example(1, frames, height, width)[0].numel()

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, config = self.prior.device, self.text.model.config
        shape = (batch, config.max_position_embeddings)
        condition = {"text": torch.empty(*shape, config.hidden_size, device=where)}
        condition |= {"mask": torch.ones(shape, dtype=torch.bool, device=where)}
        condition |= {"embeds": torch.empty(batch, config.projection_dim, device=where)}
        latents = torch.empty(batch, self.prior.config.embedding_dim, device=where)
        return latents, torch.zeros(batch, dtype=torch.long, device=where), condition

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""
        return {
            "prior": self.prior,
            "image_encoder": self.image_encoder,
            "text_encoder": self.text.model,
            "tokenizer": self.text.tokenizer,
            "image_processor": self.processor,
            "scheduler": UnCLIPScheduler.from_config(self.scheduler.config),
        }

    def pipeline(self) -> KandinskyPriorPipeline:
        """The vanilla pipeline around these very modules."""
        return KandinskyPriorPipeline(**self.parts())


def fresh(*, prior: dict[str, Any], scheduler: dict[str, Any], clip: str, deviation: float) -> Prior:
    """An untrained prior in a given CLIP's space.

    Args:
        prior: arguments of `PriorTransformer`; widths and the number of tokens are read from the CLIP.
        scheduler: arguments of `UnCLIPScheduler`.
        clip: folder of a CLIP model.
        deviation: of a coordinate of its image embeddings, so that the network sees unit variance.
    """
    towers = ("logit_scale", "visual_projection", "text_projection", "vision_model.", "text_model.")
    text = load(CLIPTextModelWithProjection, clip, unused=tuple(t for t in towers if not t.startswith("text")))
    image = load(CLIPVisionModelWithProjection, clip, unused=tuple(t for t in towers if not t.startswith("vis")))
    if text.config.hidden_size != text.config.projection_dim:
        came = f"text tokens of width {text.config.hidden_size}, a shared space of {text.config.projection_dim}"
        raise UserError(f"backbone {clip}", came, "one width, for a prior reads both", "choose another CLIP")
    tokenizer = companion(CLIPTokenizer, clip)
    network = PriorTransformer(
        **prior, embedding_dim=text.config.projection_dim, num_embeddings=tokenizer.model_max_length
    )
    nn.init.constant_(network.clip_std, deviation)
    model = Prior.__new__(Prior)
    nn.Module.__init__(model)
    model._hold(
        prior=freeze(network),
        text_encoder=text,
        image_encoder=image,
        tokenizer=tokenizer,
        processor=companion(CLIPImageProcessorPil, clip),
        scheduler=UnCLIPScheduler(**scheduler),
        path="fresh",
    )
    return model
