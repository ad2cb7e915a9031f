"""Wan 2.1 and 2.2, text to video (Wan Team 2025): a transformer trained by flow matching, a causal codec, UMT5 text.

Wan 2.2's large model has two transformers, one for much noise and one for little: choose which is trained with
``expert``. Image to video, and the 2.2 model of 5 B whose timesteps differ by token, are not here.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from mmtrain.backbone.pipelined import Pipelined
from mmtrain.backbone.schedule import Flow
from mmtrain.backbone.text import Memo, kept, refuse_long
from mmtrain.backbone.wan_codec import encode_clip, refuse_count
from mmtrain.backbone.weights import companion, digest, freeze, index, load
from mmtrain.errors import UserError
from mmtrain.rng import Rng

TOKENS = 512  # of a prompt, as the pipeline pads it
STEPS = 1000  # the network's time is 1000·σ


class Wan(Pipelined):
    """Wan text → video by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``transformer vae text_encoder tokenizer scheduler``, and ``transformer_2`` in 2.2.
        expert: of 2.2, which transformer adapters go on: ``high`` noise or ``low``; None: the only one.
        shift: of the noise levels, in training and sampling; 3 for 480 pixels and 5 for 720 are usual.
        num_frames: of a clip: one more than a multiple of the codec's step in time.
        size: height and width in pixels of what is sampled unless others are asked for.
        revision: git revision of a hub id.

    Raises:
        UserError: an expert of a model that has one transformer, none of one that has two, a 5 B folder.
    """

    makes, pipeline_class = "video", "WanPipeline"
    time_axis = 2
    digested = ("transformers", "vae", "text_encoder")
    presets: ClassVar = {
        "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
        "cross-attention": ["*.attn2.to_q", "*.attn2.to_k", "*.attn2.to_v", "*.attn2.to_out.0"],
        "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ffn.net.*"],
    }

    def __init__(
        self,
        *,
        path: str,
        expert: Literal["high", "low"] | None = None,
        shift: float = 5.0,
        num_frames: int = 81,
        size: tuple[int, int] = (480, 832),
        revision: str | None = None,
    ) -> None:
        super().__init__()
        facts = index(WanPipeline, path, revision)
        boundary = facts.get("boundary_ratio")
        if facts.get("expand_timesteps"):
            raise UserError(f"backbone {path}", "timesteps by token", "Wan 2.1, or 2.2 of 14 B", "choose another")
        if (boundary is None) != (expert is None):
            wanted = "null" if boundary is None else "high or low, for it has two transformers"
            raise UserError("backbone.expert", str(expert), wanted, "set it so")
        self._hold(
            transformers={
                name: load(WanTransformer3DModel, path, name, revision)
                for name in ("transformer", "transformer_2")[: 1 if boundary is None else 2]
            },
            vae=load(AutoencoderKLWan, path, "vae", revision),
            text_encoder=load(UMT5EncoderModel, path, "text_encoder", revision),
            tokenizer=companion(AutoTokenizer, path, "tokenizer", revision),
            path=path,
            boundary=boundary,
            expert=expert,
            shift=shift,
            num_frames=num_frames,
            size=size,
        )

    def _hold(
        self,
        *,
        transformers: dict[str, Any],
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        path: str,
        boundary: float | None,
        expert: str | None,
        shift: float,
        num_frames: int,
        size: tuple[int, int],
    ) -> None:
        self.transformers = nn.ModuleDict(transformers)
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.path, self.boundary = tokenizer, path, boundary
        self.chosen = "transformer_2" if expert == "low" else "transformer"
        low, high = {None: (0.0, 1.0), "high": (boundary or 0.0, 1.0), "low": (0.0, boundary or 1.0)}[expert]
        self.schedule = Flow(shift=shift, low=low, high=high)
        self._text = Memo(self._read)
        self.num_frames, self.size = num_frames, size
        self.check_frames(num_frames)

    @property
    def network(self) -> nn.Module:
        return self.transformers[self.chosen]

    @property
    def multiple(self) -> int:
        """Pixels that height and width are a multiple of: the codec's factor times the network's patch."""
        config: Any = self.network.config
        return int(self.vae.config.scale_factor_spatial) * int(config.patch_size[1])

    @property
    def fewest_frames(self) -> int:
        return int(self.vae.config.scale_factor_temporal) + 1

    def check_frames(self, count: int) -> None:
        """Raises UserError for a number of frames that the codec cannot divide: it keeps the first by itself."""
        refuse_count(self.vae, count)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt that the pipeline would cut."""
        refuse_long(self.tokenizer, prompts, TOKENS)

    @property
    def encoder_id(self) -> str:
        return digest(self.vae.encoder, self.vae.quant_conv)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Posterior of a clip: ``latents`` and ``latents_std``, ``[b c t' h w]``, unscaled."""
        return encode_clip(self.vae, frames, self.multiple)

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b c t' h w]`` drawn from the posterior, scaled by the codec's own mean and deviation."""
        mean = encoded["latents"]
        noise = rng.normal("posterior", mean.shape[1:]).to(mean.device)
        config = self.vae.config
        middle, unit = (
            torch.tensor(v).view(1, -1, 1, 1, 1).to(mean) for v in (config.latents_mean, config.latents_std)
        )
        return (mean + encoded["latents_std"] * noise - middle) / unit

    def condition(
        self, encoded: dict[str, Tensor], captions: Sequence[str], *, drop_text: Tensor, drop_image: Tensor
    ) -> dict[str, Tensor]:
        """Text tokens ``[b l d]``, zeros after the last; a dropped caption is the empty one."""
        [text] = self._text(kept(captions, drop_text), self.vae.device)
        return {"text": text}

    def _read(self, caption: str) -> tuple[Tensor]:
        words = [prompt_clean(caption)]
        self.check_prompts(words)
        given = self.tokenizer(words, padding="max_length", max_length=TOKENS, return_tensors="pt")
        ids, mask = (t.to(self.text_encoder.device) for t in (given.input_ids, given.attention_mask))
        return ((self.text_encoder(ids, mask).last_hidden_state * mask[..., None])[0],)

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The velocity ε − x, ``[b c t' h w]``."""
        return self.network(noisy, STEPS * level, condition["text"], return_dict=False)[0]

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, config = self.vae.device, self.vae.config
        steps, unit = (frames - 1) // config.scale_factor_temporal + 1, config.scale_factor_spatial
        latents = torch.empty(batch, config.z_dim, steps, height // unit, width // unit, device=where)
        text = torch.empty(batch, TOKENS, self.text_encoder.config.d_model, device=where)
        return latents, torch.ones(batch, device=where), {"text": text}

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""
        return {
            **dict(self.transformers.items()),
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=self.schedule.shift),
        }

    def pipeline(self) -> WanPipeline:
        """The vanilla pipeline around these very modules."""
        return WanPipeline(**self.parts(), boundary_ratio=self.boundary)


def fresh(
    *,
    words: list[str],
    transformer: dict[str, Any],
    codec: dict[str, Any] | str,
    text: dict[str, Any],
    shift: float,
    num_frames: int,
    size: tuple[int, int],
    boundary: float | None = None,
    expert: Literal["high", "low"] | None = None,
) -> Wan:
    """An untrained Wan, text encoder included.

    Args:
        words: that the tokenizer knows; any other is unknown.
        transformer: arguments of `WanTransformer3DModel`; channels and text width are read from the other two.
        codec: folder of an `AutoencoderKLWan`; or its arguments, for an untrained one too.
        text: arguments of `UMT5Config`.
        shift, num_frames, size, expert: as for `Wan`.
        boundary: the noise level at which a second transformer takes over, as in 2.2; None: there is one.
    """
    tokenizer = _tokenizer(words)
    vae = load(AutoencoderKLWan, codec) if isinstance(codec, str) else AutoencoderKLWan(**codec)
    encoder = UMT5EncoderModel(UMT5Config(**text, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    channels = {"in_channels": vae.config.z_dim, "out_channels": vae.config.z_dim, "text_dim": encoder.config.d_model}
    names = ("transformer", "transformer_2")[: 1 if boundary is None else 2]
    model = Wan.__new__(Wan)
    nn.Module.__init__(model)
    model._hold(
        transformers={name: freeze(WanTransformer3DModel(**transformer, **channels)) for name in names},
        vae=freeze(vae),
        text_encoder=freeze(encoder),
        tokenizer=tokenizer,
        path="fresh",
        boundary=boundary,
        expert=expert,
        shift=shift,
        num_frames=num_frames,
        size=size,
    )
    return model


def _tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, T5's way: no begin, an end after the last."""
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(words)])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )
