"""Clips by Stable Video Diffusion: text → video, text → first frame → video, image + text → video, image → video.

Everything runs in the vanilla pipeline; with a prompt, text tokens stand where the image's embedding stood.

Words are guided by themselves: away from the clip with the same first frame and no words, and only at much noise (as
Kynkäänniemi et al. 2024 guide an interval of levels), where it is settled where things go. The rest of the way is not
guided, so that outlines stay and a step costs half.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from PIL import Image
from torch import Tensor

from mmtrain.backbone import usual
from mmtrain.backbone.prior import Prior
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import CLIP_SIDE, FPS, StableVideoDiffusion, steered
from mmtrain.errors import UserError
from mmtrain.sample.generate import (
    STEPS,
    Progress,
    check_counts,
    check_size,
    embeddings,
    evaluating,
    folded,
    images,
    to_bytes,
    told_each_step,
)

VIDEO_GUIDANCE = 3.0  # of the last frame where an image is the condition; the vanilla ramp begins at 1
TEXT_GUIDANCE = 2.0  # of words, for every frame; measured in recipes/LOG.md, "Objects that go round in a circle"
GUIDED_ABOVE = 5.0  # σ; measured there, "Words guided by themselves"


class _Pipeline(StableVideoDiffusionPipeline):
    """The vanilla pipeline, with given tokens in the place of the image's embedding.

    ``tokens`` is None (vanilla) or a pair of unconditional and conditional ones, ``[b n d]`` each. ``image_guidance``
    says whether guidance also pushes away from the clip without its first frame, as vanilla does.
    """

    tokens: tuple[Tensor, Tensor] | None = None
    image_guidance: bool = True
    blank: bool = False

    def _encode_image(
        self, image: Any, device: Any, num_videos_per_prompt: int, do_classifier_free_guidance: bool
    ) -> Tensor:
        if self.tokens is None:
            if isinstance(image, Tensor):  # vanilla resizes pictures alone
                image = _resize_with_antialiasing(image * 2 - 1, (CLIP_SIDE, CLIP_SIDE)) / 2 + 0.5
            return super()._encode_image(image, device, num_videos_per_prompt, do_classifier_free_guidance)
        away, towards = (tokens.to(device, self.unet.dtype) for tokens in self.tokens)
        return torch.cat([away, towards]) if do_classifier_free_guidance else towards

    def _encode_vae_image(
        self, image: Tensor, device: Any, num_videos_per_prompt: int, do_classifier_free_guidance: bool
    ) -> Tensor:
        latents = super()._encode_vae_image(image, device, num_videos_per_prompt, False)
        if self.blank:
            latents = torch.zeros_like(latents)
        if not do_classifier_free_guidance:
            return latents
        return torch.cat([torch.zeros_like(latents) if self.image_guidance else latents, latents])


class VideoSampler:
    """Makes clips with a Stable Video Diffusion and whatever adapters are attached to it.

    The weights are those of the moment: make a new sampler after further training.

    Args:
        backbone: adapters attached; left as it is.
        first_frame: draws first frames from prompts, for ``first_frames="generate"``.
        prior: makes of a prompt the image embedding that the network was trained to see; None: the text tower or the
            bridge stands in for it.
    """

    def __init__(
        self,
        *,
        backbone: StableVideoDiffusion,
        first_frame: StableDiffusion | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.backbone, self.first_frame, self.prior = backbone, first_frame, prior
        parts = backbone.parts()
        parts["unet"] = folded(backbone.unet)
        self.pipeline = _Pipeline(**parts)
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def multiple(self) -> int:
        """What height and width are divisible by: the codec's factor times what the network halves."""
        return int(self.pipeline.vae_scale_factor) * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @property
    def side(self) -> int:
        """Pixels of the square that the network was made for."""
        return int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    def video(self, **asked: Any) -> np.ndarray:
        """Clips uint8 ``[b t h w c]`` of what `frames` is asked."""
        return to_bytes(self.frames(**asked))

    @torch.no_grad()
    def frames(
        self,
        *,
        prompts: Sequence[str] | None = None,
        images: np.ndarray | None = None,
        first_frames: Literal["none", "generate"] = "none",
        tokens: Literal["text", "image"] = "text",
        negative_prompt: str | None = "",
        guidance_scale: float | None = None,
        guidance_above: float | None = None,
        image_guidance: bool = False,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: int = FPS,
        num_inference_steps: int | None = None,
        seeds: Sequence[int],
        first_frame_guidance: float | None = None,
        decode_chunk_size: int | None = None,
        latents: Tensor | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Clips float32 ``[b t h w c]`` in [0, 1], one per seed; a clip does not depend on its neighbours in the batch.

        Args:
            prompts: what the clips show. None: image → video, which is the vanilla pipeline's own call.
            images: first frames, uint8 ``[b h w c]`` or float32 in [0, 1]. None with prompts: text alone, the image
                latents being zero.
            first_frames: ``generate`` has the Stable Diffusion draw the first frames from the prompts.
            tokens: what the network's cross-attention sees, the text or the first frame (as vanilla does; the prompts
                then only draw first frames).
            negative_prompt: the unconditional branch that guidance steers away from; None: zeros, as vanilla has it.
            guidance_scale: of every frame; 1 is none. None: as the model's folder says (`backbone/usual.py`), else 2
                for words, and where the image is the condition the vanilla ramp from 1 at the first frame to 3 at the
                last.
            guidance_above: the noise level σ below which nothing is guided. None: 5 for words, else 0.
            image_guidance: guidance of words steers away from the clip without its first frame too.
            num_frames, height, width: by default what the network was made for.
            fps: the conditioning number, not the rate of a file.
            num_inference_steps: of the denoising, and of drawing the first frames. None: as the folder of each model
                says, else 25.
            seeds: one per clip.
            first_frame_guidance: guidance scale of drawing the first frames; None: that of the model that draws them.
            decode_chunk_size: frames that the codec decodes at once; None: all. Fewer need less memory, and where the
                codec looks at neighbouring frames, they look a little different.
            latents: the noise to start from, ``[b t c h w]`` with unit variance; None: drawn from the seeds.
            progress: told each denoising step.

        Raises:
            UserError: neither prompt nor image, sizes the codec cannot hold, a prompt longer than the tower's limit.
        """
        height, width = (self.side if pixels is None else pixels for pixels in (height, width))
        frames = self.pipeline.unet.config.num_frames if num_frames is None else num_frames
        own = usual.of(self.backbone)
        steps = own.get("num_inference_steps", STEPS) if num_inference_steps is None else num_inference_steps
        scale = own.get("guidance_scale") if guidance_scale is None else guidance_scale
        check_counts(prompts, images, seeds, num_frames=frames, num_inference_steps=steps, fps=fps)
        check_size(height, width, self.multiple)
        with evaluating(self.backbone):
            if first_frames == "generate":
                how: dict[str, Any] = {"height": height, "width": width, "guidance_scale": first_frame_guidance}
                how |= {"num_inference_steps": num_inference_steps, "negative_prompt": negative_prompt or ""}
                images = self._first_frames(prompts, images, seeds, how)
            textual = prompts is not None and tokens == "text"
            if not textual and images is None:
                raise UserError("sample", "no first frame", "one, to be the condition", "give an image")
            words = textual and self.prior is None
            above = (GUIDED_ABOVE if words else 0.0) if guidance_above is None else guidance_above
            ramp = (TEXT_GUIDANCE, TEXT_GUIDANCE) if words else (1.0, VIDEO_GUIDANCE)
            low, high = ramp if scale is None else (scale, scale)
            read = list(prompts) if prompts and textual else None
            code = self._prepare(read, negative_prompt, seeds, blank=images is None, guided=high > 1)
            self.pipeline.image_guidance = image_guidance or not words
            with (
                steered(self.pipeline.unet, self.backbone.bridge, code),
                unguided_below(self.pipeline.unet, above, self.backbone.bridge, code, guided=high > 1),
            ):
                output = self.pipeline(
                    _given(images, (len(seeds), 3, height, width)),
                    height=height,
                    width=width,
                    num_frames=frames,
                    num_inference_steps=steps,
                    min_guidance_scale=low,
                    max_guidance_scale=high,
                    fps=fps,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    decode_chunk_size=decode_chunk_size,
                    latents=latents,
                    output_type="np",
                    callback_on_step_end=told_each_step(progress, steps),
                )
        return np.asarray(output.frames, np.float32)

    def _prepare(
        self,
        prompts: list[str] | None,
        negative_prompt: str | None,
        seeds: Sequence[int],
        *,
        blank: bool,
        guided: bool,
    ) -> Tensor | None:
        """Hand the pipeline its tokens; the codes of its rows, with guidance the unconditional ones first."""
        self.pipeline.blank = blank
        self.pipeline.tokens = None
        if prompts is None:
            return None
        if self.prior is not None:
            made = embeddings(self.prior, prompts, seeds, negative_prompt or "")
            self.pipeline.tokens = (torch.zeros_like(made)[:, None], made[:, None])
            return None
        towards = self.backbone.text_tokens(prompts)
        away = torch.zeros_like(towards[:1])
        if negative_prompt is not None:
            away = self.backbone.text_tokens([negative_prompt])
        self.pipeline.tokens = (away.expand_as(towards), towards)
        if self.backbone.bridge is None:
            return None
        code = self.backbone.text_code(prompts)
        away_code = torch.zeros_like(code[:1])
        if negative_prompt is not None:
            away_code = self.backbone.text_code([negative_prompt])
        return torch.cat([away_code.expand_as(code), code]) if guided else code

    def _first_frames(
        self, prompts: Sequence[str] | None, given: np.ndarray | None, seeds: Sequence[int], how: dict[str, Any]
    ) -> np.ndarray:
        if self.first_frame is None:
            raise UserError("first frame", "no Stable Diffusion to draw it", "one", "name its folder")
        if prompts is None or given is not None:
            raise UserError("first frame", "an image, or no prompt", "a prompt alone, to draw it from", "choose one")
        return images(backbone=self.first_frame, prompts=prompts, seeds=seeds, **how)


@contextmanager
def unguided_below(unet: Any, level: float, bridge: Any, code: Tensor | None, *, guided: bool) -> Iterator[None]:
    """A network that, below a noise level σ, is asked for the conditional half of its rows alone, and answers with it
    for both: guidance, which adds a multiple of their difference, then adds nothing.

    Args:
        unet: that the pipeline calls with ¼ ln σ, unconditional rows first.
        level: σ; 0 leaves the network alone.
        bridge, code: that steer it, row by row.
        guided: whether the rows are doubled at all.
    """
    if not guided or level <= 0:
        yield
        return
    own, stock = "forward" in vars(unet), unet.forward  # its own where it is held in fewer bits

    def halved(sample: Tensor, timestep: Any, *, encoder_hidden_states: Tensor, **others: Any) -> Any:
        if math.exp(4 * float(timestep)) >= level:
            return stock(sample, timestep, encoder_hidden_states=encoder_hidden_states, **others)
        half = len(sample) // 2
        facts = others.pop("added_time_ids")[half:]
        with steered(unet, bridge, None if code is None else code[half:]):
            found = stock(
                sample[half:],
                timestep,
                encoder_hidden_states=encoder_hidden_states[half:],
                added_time_ids=facts,
                **others,
            )
        return (torch.cat([found[0], found[0]]),)

    unet.forward = halved
    try:
        yield
    finally:
        if own:
            unet.forward = stock
        else:
            del unet.forward


def _given(images: np.ndarray | None, blank: tuple[int, ...]) -> Any:
    """First frames as the pipeline takes them: pictures, or a tensor ``[b c h w]`` in [0, 1], of zeros for none."""
    if images is None:
        return torch.zeros(blank)
    if images.dtype == np.uint8:
        return [Image.fromarray(image) for image in images]
    return torch.from_numpy(images).permute(0, 3, 1, 2)
