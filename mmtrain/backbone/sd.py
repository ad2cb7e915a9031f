"""Stable Diffusion (Rombach et al. 2022): text to image in a KL codec's latents, eps or v prediction.

Read from the folder's own configs: channels, scaling factor, noise schedule, prediction type.
"""

from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from mmtrain.backbone.pipelined import LatentDiffusion
from mmtrain.backbone.schedule import Discrete
from mmtrain.backbone.weights import companion, freeze, load
from mmtrain.errors import UserError


class StableDiffusion(LatentDiffusion):
    """Stable Diffusion by hub id or local folder, frozen on arrival.

    Args:
        path: pipeline folder with ``unet vae text_encoder tokenizer scheduler``.
        revision: git revision of a hub id.
        few_steps: sample by latent consistency, for what `objective.consistency` has trained.
    """

    makes, pipeline_class = "image", "StableDiffusionPipeline"

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

    def _hold(self, *, scheduler: Any, **parts: Any) -> None:
        super()._latent(**parts)
        self.scheduler, self.schedule = scheduler, Discrete(scheduler.config)
        self.few_steps = scheduler.config.get("_class_name") == LCMScheduler.__name__  # a folder that we exported

    def predict(self, noisy: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network's output ``[b c h w]``, in the model's own prediction type."""
        return self.unet(noisy, level, encoder_hidden_states=condition["text"]).sample

    def example(self, batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `predict` takes, by shape alone, where the network is."""
        latents, level = self.outline(batch, height, width)
        return latents, level, {"text": self.outlined_text(batch)}

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


def cut(*, path: str, unet: dict[str, Any]) -> StableDiffusion:
    """A smaller Stable Diffusion out of a trained one: layers are left out, those that remain keep their weights.

    What BK-SDM starts from (Kim et al. 2023, section 3.1); `objective.teacher` trains it.

    Args:
        path: pipeline folder of the larger one.
        unet: what differs in its UNet's config.

    Raises:
        UserError: the smaller network has a layer that the larger one has not, or of another shape.
    """
    whole = load(UNet2DConditionModel, path, "unet")
    small = UNet2DConditionModel.from_config({**whole.config, **unet})
    weights, known = small.state_dict(), whole.state_dict()
    strange = [name for name, w in weights.items() if name not in known or known[name].shape != w.shape]
    if strange:
        came = f"{len(strange)} weights that the larger network has not, {strange[0]} first"
        raise UserError("backbone.unet", came, "layers left out, none added or narrowed", "correct it")
    if whole.device.type != "meta":
        small.load_state_dict({name: known[name] for name in weights}, strict=True)
    model = StableDiffusion.__new__(StableDiffusion)
    nn.Module.__init__(model)
    model._hold(
        unet=freeze(small),
        vae=load(AutoencoderKL, path, "vae"),
        text_encoder=load(CLIPTextModel, path, "text_encoder"),
        tokenizer=companion(CLIPTokenizer, path, "tokenizer"),
        scheduler=companion(DDIMScheduler, path, "scheduler"),
        path=path,
    )
    return model
