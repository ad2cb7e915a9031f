"""AnimateDiff (Guo et al. 2023): motion modules between the layers of a frozen Stable Diffusion, text to video.

Its UNet is a video network (Ho et al. 2022) whose spatial layers are the picture model's: with fresh motion modules,
whose last layers are zero, each frame is that model's own picture. Train the modules with
``adapter=motion_modules``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from mmtrain.backbone.codec import encode_clip, factor
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.text import Memo, kept, tokenize
from mmtrain.backbone.weights import companion, digest, freeze, load, save_pipeline
from mmtrain.errors import UserError
from mmtrain.rng import Rng


class AnimateDiff(nn.Module):
    """AnimateDiff by the hub ids or folders of a Stable Diffusion and of motion modules, frozen on arrival.

    Args:
        path: a Stable Diffusion's pipeline folder; or, without ``motion_path``, an AnimateDiff's own.
        motion_path: a `MotionAdapter`'s folder; None: the modules are in ``path``.
        num_frames: of a clip, at most what the motion modules' positions reach.
        scheduler: settings of the schedule that differ from the folder's, as the published modules want
            ``{beta_schedule: linear, clip_sample: false}``.
        revision: git revision of ``path``.

    Raises:
        UserError: modules that do not fit this Stable Diffusion, or too many frames for them.
    """

    makes, pipeline_class = "video", "AnimateDiffPipeline"
    fewest_frames = 2
    presets: ClassVar = {
        "attention": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"],
        "temporal": ["*.motion_modules.*.attn*.to_q", "*.motion_modules.*.attn*.to_k", "*.motion_modules.*.attn*.to_v"]
        + ["*.motion_modules.*.attn*.to_out.0", "*.motion_modules.*.ff.net.*"],
        "spatial": ["*.attentions.*.to_q", "*.attentions.*.to_k", "*.attentions.*.to_v", "*.attentions.*.to_out.0"],
        "all-linear": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*", "*.proj_in", "*.proj_out"],
    }

    def __init__(
        self,
        *,
        path: str,
        motion_path: str | None = None,
        num_frames: int = 16,
        scheduler: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if motion_path is None:
            unet = load(UNetMotionModel, path, "unet", revision)
        else:
            unet = _with_motion(load(UNet2DConditionModel, path, "unet", revision), load(MotionAdapter, motion_path))
        own = companion(DDIMScheduler, path, "scheduler", revision)
        self._hold(
            unet=unet,
            vae=load(AutoencoderKL, path, "vae", revision),
            text_encoder=load(CLIPTextModel, path, "text_encoder", revision),
            tokenizer=companion(CLIPTokenizer, path, "tokenizer", revision),
            scheduler=DDIMScheduler.from_config(own.config, **(scheduler or {})),
            path=path,
            num_frames=num_frames,
        )

    def _hold(
        self, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, path: str, num_frames: int
    ) -> None:
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.scheduler, self.path, self.num_frames = tokenizer, scheduler, path, num_frames
        self.schedule = Discrete(scheduler.config)
        self._text = Memo(self._read)
        self.check_frames(num_frames)

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

    def check_frames(self, count: int) -> None:
        """Raises UserError for a number of frames that the motion modules have no positions for."""
        most = int(self.unet.config.motion_max_seq_length)
        if not 1 <= count <= most:
            raise UserError("num_frames", str(count), f"1 to {most}, by these motion modules", "choose fewer")

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
        """Posterior of every frame: ``latents`` and ``latents_std``, ``[b t c h w]``, unscaled."""
        self.check_frames(frames.shape[1])
        return encode_clip(self.vae, frames)

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b c t h w]``, the network's own order, drawn from the posterior, scaled."""
        mean = encoded["latents"]
        noise = rng.normal("posterior", mean.shape[1:]).to(mean.device)
        drawn = (mean + encoded["latents_std"] * noise) * self.vae.config.scaling_factor
        return drawn.transpose(1, 2).contiguous()

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
        """The network's output ``[b c t h w]``, in the model's own prediction type; every frame sees the same text."""
        text = condition["text"].repeat_interleave(noisy.shape[2], 0)
        return self.unet(noisy, level, encoder_hidden_states=text).sample

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        where, config, unit = self.unet.device, self.text_encoder.config, self.multiple
        shape = (batch, self.unet.config.in_channels, frames, height // unit, width // unit)
        text = torch.empty(batch, config.max_position_embeddings, config.hidden_size, device=where)
        return torch.empty(shape, device=where), torch.zeros(batch, dtype=torch.long, device=where), {"text": text}

    def parts(self) -> dict[str, Any]:
        """The modules of the pipeline, by the names of its folder; its UNet holds the motion modules."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": DDIMScheduler.from_config(self.scheduler.config),
        }

    def pipeline(self) -> AnimateDiffPipeline:
        """The vanilla pipeline around these very modules."""
        return AnimateDiffPipeline(**self.parts(), motion_adapter=None)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A pipeline folder for `AnimateDiffPipeline.from_pretrained`, adapters and motion modules in its UNet."""
        save_pipeline(self, folder, dtype)


def _with_motion(unet: Any, motion: Any) -> Any:
    outlined = unet.device.type == "meta"  # then there are no weights to carry over
    try:
        with torch.device("meta" if outlined else unet.device):
            return freeze(UNetMotionModel.from_unet2d(unet, motion, load_weights=not outlined))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError("backbone.motion_path", reason, "modules made for this network", "choose others") from error


def fresh(*, path: str, num_frames: int, motion: dict[str, Any]) -> AnimateDiff:
    """Untrained motion modules on a trained Stable Diffusion.

    Args:
        path: the Stable Diffusion's pipeline folder.
        num_frames: of a clip.
        motion: arguments of `MotionAdapter`; widths and depths are read from the Stable Diffusion.
    """
    unet = load(UNet2DConditionModel, path, "unet")
    modules = MotionAdapter(
        **motion,
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=unet.config.layers_per_block,
        motion_norm_num_groups=unet.config.norm_num_groups,
    )
    for name, weight in modules.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(weight)  # each module passes its input on (Guo et al. 2023, section 4.2)
    model = AnimateDiff.__new__(AnimateDiff)
    nn.Module.__init__(model)
    model._hold(
        unet=_with_motion(unet, modules),
        vae=load(AutoencoderKL, path, "vae"),
        text_encoder=load(CLIPTextModel, path, "text_encoder"),
        tokenizer=companion(CLIPTokenizer, path, "tokenizer"),
        scheduler=companion(DDIMScheduler, path, "scheduler"),
        path=path,
        num_frames=num_frames,
    )
    return model
