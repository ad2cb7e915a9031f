"""AnimateDiff (Guo et al. 2023): motion modules between the layers of a frozen Stable Diffusion, text to video.

Its UNet is a video network (Ho et al. 2022) whose spatial layers are the picture model's: with fresh motion modules,
whose last layers are zero, each frame is that model's own picture. Train the modules with
``adapter=motion_modules``.
"""

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

from mmtrain.backbone.codec import encode_clip
from mmtrain.backbone.pipelined import LatentDiffusion
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.weights import companion, freeze, load
from mmtrain.errors import UserError
from mmtrain.rng import Rng


class AnimateDiff(LatentDiffusion):
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
    time_axis = 2
    fewest_frames = 2
    presets: ClassVar = {
        "attention": LatentDiffusion.presets["attention"],
        "temporal": ["*.motion_modules.*.attn*.to_q", "*.motion_modules.*.attn*.to_k", "*.motion_modules.*.attn*.to_v"]
        + ["*.motion_modules.*.attn*.to_out.0", "*.motion_modules.*.ff.net.*"],
        "spatial": ["*.attentions.*.to_q", "*.attentions.*.to_k", "*.attentions.*.to_v", "*.attentions.*.to_out.0"],
        "all-linear": LatentDiffusion.presets["all-linear"],
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

    def _hold(self, *, scheduler: Any, num_frames: int, **parts: Any) -> None:
        super()._latent(**parts)
        self.scheduler, self.num_frames = scheduler, num_frames
        self.schedule = Discrete(scheduler.config)
        self.check_frames(num_frames)

    def check_frames(self, count: int) -> None:
        """Raises UserError for a number of frames that the motion modules have no positions for."""
        most = int(self.unet.config.motion_max_seq_length)
        if not 1 <= count <= most:
            raise UserError("num_frames", str(count), f"1 to {most}, by these motion modules", "choose fewer")

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Posterior of every frame: ``latents`` and ``latents_std``, ``[b t c h w]``, unscaled."""
        self.check_frames(frames.shape[1])
        return encode_clip(self.vae, frames)

    def draw_latents(self, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Latents ``[b c t h w]``, the network's own order, drawn from the posterior, scaled."""
        return self.drawn(encoded["latents"], encoded["latents_std"], rng).transpose(1, 2).contiguous()

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output ``[b c t h w]``, in the model's own prediction type; every frame sees the same text."""
        text = condition["text"].repeat_interleave(noisy.shape[2], 0)
        return self.unet(noisy, level, encoder_hidden_states=text).sample

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        latents, level = self.outline(batch, height, width, frames)
        return latents, level, {"text": self.outlined_text(batch)}

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
