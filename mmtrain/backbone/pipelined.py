"""What families that are pipelines of the hub have in common: their folder, and, on a KL image codec, their latents.

A family's own file says what its parts are, how text becomes a condition, and what its network predicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtrain.adapter.words import holds
from mmtrain.backbone.codec import encode_clip, factor
from mmtrain.backbone.text import Memo, kept, tokenize
from mmtrain.backbone.weights import digest, save_pipeline
from mmtrain.errors import UserError
from mmtrain.rng import Rng


class Pipelined(nn.Module, ABC):
    """A backbone that is a whole pipeline of the hub.

    Attributes:
        pipeline_class: the vanilla class that opens its folder.
        opens: the vanilla classes whose folders it opens, where they are several, each with what its constructor is
            told of one.
        digested: attributes that hold its weights, in the order in which its digest takes them; None holds none.
        only_encode: those of them that nothing but `encode` and sampling asks.
        encoders: attributes that `encode` asks; none: any of them.
        path: hub id or folder that it came from, or ``fresh``.
        usual: how it is sampled by whoever does not say, beyond what the folder that it came from says (`usual.py`).
        time_axis: of the latents that it draws, along which a clip's frames lie; None: it has none.
    """

    pipeline_class: str
    opens: ClassVar[dict[str, dict[str, Any]]] = {}
    digested: ClassVar[tuple[str, ...]]
    only_encode: ClassVar[tuple[str, ...]] = ()
    encoders: ClassVar[tuple[str, ...]] = ()
    path: str
    usual: Mapping[str, Any] = MappingProxyType({})
    time_axis: ClassVar[int | None] = None

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module that adapters are attached to."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""

    @abstractmethod
    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""

    def encoded_size(self, frames: int, height: int, width: int) -> int:
        """Numbers that `encode` gives of a sample: mean and deviation of its latents, unless overridden."""
        return 2 * self.example(1, frames, height, width)[0].numel()

    @abstractmethod
    def pipeline(self) -> Any:
        """The vanilla pipeline around these very modules."""

    @property
    def base(self) -> dict[str, str]:
        held = (getattr(self, name) for name in self.digested)
        return {"path": self.path, "digest": digest(*(part for part in held if part is not None))}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A pipeline folder that the vanilla class opens, adapters of the network merged."""
        save_pipeline(self, folder, dtype)


class LatentDiffusion(Pipelined):
    """A UNet on the latents of a KL image codec, told by text (Rombach et al. 2022).

    Attributes:
        learned: words that an adapter adds to the text tower (`adapter/words.py`).
    """

    digested: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder")
    only_encode: ClassVar[tuple[str, ...]] = ("vae",)
    encoders: ClassVar[tuple[str, ...]] = ("vae",)

    presets: ClassVar[dict[str, list[str]]] = {
        "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
        "cross-attention": ["*.attn2.to_*"],
        "up": ["up_blocks.*.to_q", "up_blocks.*.to_k", "up_blocks.*.to_v", "up_blocks.*.to_out.0"],
        "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*", "*.proj_in", "*.proj_out"],
        "with-convolutions": [
            *("*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*", "*.proj_in", "*.proj_out"),
            *("*.resnets.*.conv1", "*.resnets.*.conv2"),
        ],
        "whole": [
            *("*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*", "*.proj_in", "*.proj_out"),
            *("*.resnets.*.conv*", "*.time_emb_proj", "*samplers.*.conv", "conv_in", "conv_out"),
        ],
    }

    def _latent(self, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, path: str) -> None:
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.path = tokenizer, path
        self.learned: list[str] = []
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

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def encoder_id(self) -> str:
        return digest(self.vae.encoder, self.vae.quant_conv)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt that the text tower would cut."""
        tokenize(self.tokenizer, prompts, "cpu")

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Posterior of the first frame: ``latents`` and ``latents_std``, ``[b 1 c h w]``, unscaled."""
        return encode_clip(self.vae, frames[:, :1])

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b c h w]`` drawn from the first frame's posterior, scaled."""
        return self.drawn(encoded["latents"][:, 0], encoded["latents_std"][:, 0], rng)

    def drawn(self, mean: Tensor, deviation: Tensor, rng: Rng) -> Tensor:
        """Latents drawn from a posterior ``[b …]``, scaled."""
        noise = rng.normal("posterior", mean.shape[1:]).to(mean.device)
        return (mean + deviation * noise) * self.vae.config.scaling_factor

    def condition(
        self, encoded: dict[str, Tensor], captions: Sequence[str], *, drop_text: Tensor, drop_image: Tensor
    ) -> dict[str, Tensor]:
        """Text tokens ``[b l d]``; a dropped caption is the empty one. There is no image conditioning to drop.

        Raises:
            UserError: words are learned, and no caption of the batch holds one.
        """
        told = kept(captions, drop_text)
        if not self.learned:
            [text] = self._text(told, self.text_encoder.device)
            return {"text": text}
        if torch.is_grad_enabled() and not any(holds(caption, self.learned) for caption in captions):
            wanted = f"one with {' or '.join(self.learned)}, which are to be learned"
            raise UserError("captions", f"none of a batch such as {captions[0]!r}", wanted, "set dataset.caption")
        text = torch.stack([self._told(caption) for caption in told])
        learned = self.text_encoder.get_input_embeddings().learned
        return {"text": text + 0.0 * learned.sum()}  # a batch of dropped captions has a gradient too, of zero

    def _told(self, caption: str) -> Tensor:
        """Tokens ``[l d]`` of a caption: remembered, save for learned words, which change."""
        if holds(caption, self.learned):
            return self._read(caption)[0]
        return self._text([caption], self.text_encoder.device)[0][0]

    def _read(self, caption: str) -> tuple[Tensor, ...]:
        ids, _ = tokenize(self.tokenizer, [caption], self.text_encoder.device)
        return (self.text_encoder(ids).last_hidden_state[0],)

    def outline(self, batch: int, height: int, width: int, *frames: int) -> tuple[Tensor, Tensor]:
        """Latents ``[b c … h w]`` and levels ``[b]``, by shape alone, where the network is."""
        where, unit = self.unet.device, self.multiple
        shape = (batch, self.unet.config.in_channels, *frames, height // unit, width // unit)
        return torch.empty(shape, device=where), torch.zeros(batch, dtype=torch.long, device=where)

    def outlined_text(self, batch: int) -> Tensor:
        """Text tokens ``[b l d]`` by shape alone."""
        shape = (batch, self.text_encoder.config.max_position_embeddings, self.unet.config.cross_attention_dim)
        return torch.empty(shape, device=self.unet.device)
