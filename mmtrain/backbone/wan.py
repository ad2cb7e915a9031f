"""Wan 2.1 and 2.2 (Wan Team 2025), text or image to video: a transformer trained by flow matching, a causal codec,
UMT5 text.

Wan 2.2's large model has two transformers, one for much noise and one for little: choose which is trained with
``expert``. How a first frame is told to the network is `wan_image.py`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from mmtrain.backbone import wan_image
from mmtrain.backbone.clip import image_processor
from mmtrain.backbone.pipelined import Pipelined
from mmtrain.backbone.schedule import Flow
from mmtrain.backbone.text import Memo, kept, refuse_long, t5_tokenizer
from mmtrain.backbone.wan_codec import encode_clip, refuse_count, step_of
from mmtrain.backbone.wan_image import FirstFrame
from mmtrain.backbone.weights import companion, digest, freeze, index, load
from mmtrain.errors import UserError
from mmtrain.rng import Rng

TOKENS = 512  # of a prompt, as the pipeline pads it
STEPS = 1000  # the network's time is 1000·σ

Start = Literal["text", "image"]
OPENS = {"text": "WanPipeline", "image": "WanImageToVideoPipeline"}
PRESETS = {
    "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
    "cross-attention": ["*.attn2.to_q", "*.attn2.to_k", "*.attn2.to_v", "*.attn2.to_out.0"],
    "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ffn.net.*"],
}
OF_IMAGES = ["*.attn2.add_k_proj", "*.attn2.add_v_proj"]  # keys and values of a first frame's tokens, in 2.1


class Wan(Pipelined):
    """Wan by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``transformer vae text_encoder tokenizer scheduler``; ``transformer_2`` in 2.2 of
            14 B; ``image_encoder image_processor`` in 2.1 that starts from an image.
        starts_from: ``text`` alone, or also an ``image``, the clip's first frame, as the model was made; Wan 2.2 of 5 B
            can do either.
        expert: of 2.2, which transformer adapters go on: ``high`` noise or ``low``; None: the only one.
        shift: of the noise levels, in training and sampling; 3 for 480 pixels and 5 for 720 are usual.
        num_frames: of a clip: one more than a multiple of the codec's step in time.
        size: height and width in pixels of what is sampled unless others are asked for.
        revision: git revision of a hub id.

    Raises:
        UserError: an expert of a model that has one transformer, none of one that has two; an image for a model of text
            alone, or none; a model that wants a last frame besides.
    """

    makes, pipeline_class = "video", OPENS["text"]
    opens: ClassVar = {name: {"starts_from": start} for start, name in OPENS.items()}
    time_axis = 2
    digested = ("transformers", "vae", "text_encoder", "first")
    encoders = ("vae", "first")

    def __init__(
        self,
        *,
        path: str,
        starts_from: Start = "text",
        expert: Literal["high", "low"] | None = None,
        shift: float = 5.0,
        num_frames: int = 81,
        size: tuple[int, int] = (480, 832),
        revision: str | None = None,
    ) -> None:
        super().__init__()
        facts = index(WanPipeline, path, revision)
        boundary, by_token = facts.get("boundary_ratio"), bool(facts.get("expand_timesteps"))
        own: Start = "image" if facts["_class_name"] == OPENS["image"] else "text"
        if starts_from != own and not by_token:
            fix = f"choose backbone={'wan_i2v' if own == 'image' else 'wan'}, or name another model"
            raise UserError("backbone.starts_from", starts_from, f"{own}: {path} was made so", fix)
        if (boundary is None) != (expert is None):
            wanted = "null" if boundary is None else "high or low, for it has two transformers"
            raise UserError("backbone.expert", str(expert), wanted, "set it so")
        transformers = {
            name: load(WanTransformer3DModel, path, name, revision)
            for name in ("transformer", "transformer_2")[: 1 if boundary is None else 2]
        }
        first = None
        if starts_from == "image":
            first = wan_image.opened(path, revision, transformers["transformer"].config, in_place=by_token)
        self._hold(
            transformers=transformers,
            vae=load(AutoencoderKLWan, path, "vae", revision),
            text_encoder=load(UMT5EncoderModel, path, "text_encoder", revision),
            tokenizer=companion(AutoTokenizer, path, "tokenizer", revision),
            first=first,
            path=path,
            by_token=by_token,
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
        first: FirstFrame | None,
        path: str,
        by_token: bool,
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
        self.first, self.by_token = first, by_token
        self.pipeline_class = OPENS[self.starts_from]
        self.chosen = "transformer_2" if expert == "low" else "transformer"
        low, high = {None: (0.0, 1.0), "high": (boundary or 0.0, 1.0), "low": (0.0, boundary or 1.0)}[expert]
        self.schedule = Flow(shift=shift, low=low, high=high)
        self._text = Memo(self._read)
        self.num_frames, self.size = num_frames, size
        self.check_frames(num_frames)

    @property
    def starts_from(self) -> Start:
        """What a clip is made of: text alone, or also an image."""
        return "text" if self.first is None else "image"

    @property
    def network(self) -> nn.Module:
        return self.transformers[self.chosen]

    @property
    def presets(self) -> dict[str, list[str]]:
        """Layers by name, those that read a first frame's tokens included where the network has them."""
        config: Any = self.network.config
        added = [] if config.added_kv_proj_dim is None else OF_IMAGES
        return {name: [*layers, *added] for name, layers in PRESETS.items()}

    @property
    def multiple(self) -> int:
        """Pixels that height and width are a multiple of: the codec's factor times the network's patch."""
        config: Any = self.network.config
        return int(self.vae.config.scale_factor_spatial) * int(config.patch_size[1])

    @property
    def fewest_frames(self) -> int:
        return step_of(self.vae) + 1

    def check_frames(self, count: int) -> None:
        """Raises UserError for a number of frames that the codec cannot divide: it keeps the first by itself."""
        refuse_count(self.vae, count)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt that the pipeline would cut."""
        refuse_long(self.tokenizer, prompts, TOKENS)

    @property
    def encoder_id(self) -> str:
        codec = (self.vae.encoder, self.vae.quant_conv)
        if self.first is None or self.first.in_place:
            return digest(*codec)
        return f"{digest(*codec, self.first)} beside"

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Posterior of a clip: ``latents`` and ``latents_std``, ``[b c t' h w]``, unscaled; with an image, what
        `FirstFrame.encode` says of the first frame."""
        found = encode_clip(self.vae, frames, self.multiple)
        return found if self.first is None else {**found, **self.first.encode(self.vae, frames)}

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b c t' h w]`` drawn from the posterior, scaled by the codec's own mean and deviation; a first
        latent frame that is given is not drawn, but the mean."""
        mean, deviation = encoded["latents"], encoded["latents_std"]
        if self.first is not None and self.first.in_place:
            deviation = torch.cat([torch.zeros_like(deviation[:, :, :1]), deviation[:, :, 1:]], 2)
        return self._scaled(mean + deviation * rng.normal("posterior", mean.shape[1:]).to(mean.device))

    def _scaled(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        middle, unit = (
            torch.tensor(v).view(1, -1, 1, 1, 1).to(latents) for v in (config.latents_mean, config.latents_std)
        )
        return (latents - middle) / unit

    def condition(
        self, encoded: dict[str, Tensor], captions: Sequence[str], *, drop_text: Tensor, drop_image: Tensor
    ) -> dict[str, Tensor]:
        """Text tokens ``[b l d]``, zeros after the last; a dropped caption is the empty one. With an image also its
        ``start``, and its ``image_embeds [b n d]`` where the network reads them. An image is never dropped: both
        branches that guidance compares see it."""
        [text] = self._text(kept(captions, drop_text), self.vae.device)
        if self.first is None:
            return {"text": text}
        latents = self._scaled(encoded["latents" if self.first.in_place else "image_latents"])
        start = self.first.start(latents, int(self.vae.config.scale_factor_temporal))
        tokens = {name: encoded[name] for name in ("image_embeds",) if self.first.tower is not None}
        return {"text": text, "start": start, **tokens}

    def _read(self, caption: str) -> tuple[Tensor]:
        words = [prompt_clean(caption)]
        self.check_prompts(words)
        given = self.tokenizer(words, padding="max_length", max_length=TOKENS, return_tensors="pt")
        ids, mask = (t.to(self.text_encoder.device) for t in (given.input_ids, given.attention_mask))
        return ((self.text_encoder(ids, mask).last_hidden_state * mask[..., None])[0],)

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The velocity ε − x, ``[b c t' h w]``."""
        time, given = STEPS * level, noisy
        if self.by_token:
            config: Any = self.network.config
            time = wan_image.times(time, noisy, config.patch_size, given=self.first is not None)
        if self.first is not None:
            given = self.first.given(noisy, condition["start"])
        velocity: Tensor = self.network(
            given, time, condition["text"], condition.get("image_embeds"), return_dict=False
        )[0]
        return velocity if self.first is None else self.first.led(velocity, noisy, level, condition["start"])

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, config = self.vae.device, self.vae.config
        steps, unit = (frames - 1) // config.scale_factor_temporal + 1, config.scale_factor_spatial
        latents = torch.empty(batch, config.z_dim, steps, height // unit, width // unit, device=where)
        told = {"text": torch.empty(batch, TOKENS, self.text_encoder.config.d_model, device=where)}
        if self.first is not None:
            told["start"] = self.first.start(latents, int(config.scale_factor_temporal))
            told |= self.first.example(batch, where)
        return latents, torch.ones(batch, device=where), told

    def encoded_size(self, frames: int, height: int, width: int) -> int:
        """Numbers that `encode` gives of a clip: its latents, and what `FirstFrame.encode` says of the first frame."""
        both = super().encoded_size(frames, height, width)
        return both if self.first is None else both + self.first.encoded_size(both // 2)

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder."""
        first = self.first
        return {
            **dict(self.transformers.items()),
            **({} if first is None else {"image_encoder": first.tower, "image_processor": first.processor}),
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=self.schedule.shift),
        }

    def pipeline(self) -> WanPipeline | WanImageToVideoPipeline:
        """The vanilla pipeline around these very modules."""
        kind = WanPipeline if self.first is None else WanImageToVideoPipeline
        return kind(**self.parts(), boundary_ratio=self.boundary, expand_timesteps=self.by_token)


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
    starts_from: Start = "text",
    by_token: bool = False,
    image_tower: dict[str, Any] | None = None,
) -> Wan:
    """An untrained Wan, text encoder included.

    Args:
        words: that the tokenizer knows; any other is unknown.
        transformer: arguments of `WanTransformer3DModel`; channels and text width are read from the other two.
        codec: folder of an `AutoencoderKLWan`; or its arguments, for an untrained one too.
        text: arguments of `UMT5Config`.
        shift, num_frames, size, expert, starts_from: as for `Wan`.
        boundary: the noise level at which a second transformer takes over, as in 2.2; None: there is one.
        by_token: whether time is told by token, as in 2.2 of 5 B; a first frame then stands among the latents.
        image_tower: arguments of `CLIPVisionConfig`, of the tower that reads first frames in 2.1; None: there is none.
    """
    tokenizer = t5_tokenizer(words, TOKENS)
    vae = load(AutoencoderKLWan, codec) if isinstance(codec, str) else AutoencoderKLWan(**codec)
    encoder = UMT5EncoderModel(UMT5Config(**text, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    tower: Any
    z, step = int(vae.config.z_dim), int(vae.config.scale_factor_temporal)
    first, facts = None, {"in_channels": z, "out_channels": z, "text_dim": encoder.config.d_model}
    if starts_from == "image":
        facts["in_channels"] = z if by_token else 2 * z + step
        first = FirstFrame(in_place=by_token)
        if image_tower is not None:
            tower = freeze(CLIPVisionModel(CLIPVisionConfig(**image_tower)))
            first = FirstFrame(in_place=by_token, tower=tower, processor=image_processor(tower.config))
            width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
            facts |= {"image_dim": tower.config.hidden_size, "added_kv_proj_dim": width}
    names = ("transformer", "transformer_2")[: 1 if boundary is None else 2]
    model = Wan.__new__(Wan)
    nn.Module.__init__(model)
    model._hold(
        transformers={name: freeze(WanTransformer3DModel(**transformer, **facts)) for name in names},
        vae=freeze(vae),
        text_encoder=freeze(encoder),
        tokenizer=tokenizer,
        first=first,
        path="fresh",
        by_token=by_token,
        boundary=boundary,
        expert=expert,
        shift=shift,
        num_frames=num_frames,
        size=size,
    )
    return model
