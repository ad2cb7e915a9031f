"""Pictures and clips from prompts by the vanilla pipelines, and what all sampling shares: counts and sizes checked,
adapters merged into a copy first, so that the frames are those of an exported folder.

Stable Video Diffusion is `video.py`'s; files are `mp4.py` and `write.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmtrain.adapter.injected import merged
from mmtrain.backbone import usual
from mmtrain.backbone.prior import Prior
from mmtrain.errors import UserError

Progress = Callable[[int, int], None]
"""Told (steps done, steps in all)."""

STEPS = 25  # inference steps, the pipelines' own usual number
IMAGE_GUIDANCE = 7.5
CLIP_GUIDANCE = 5.0  # text → video, as Wan's pipeline has it


HELD = "held_in_fewer_bits"
"""Marks a network that `held.hold` has made ready to sample: it is not folded into 32 bits again."""


def images(
    *,
    backbone: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative_prompt: str = "",
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Images uint8 ``[b h w c]`` by a text → image model's vanilla pipeline, one per prompt and seed.

    Args:
        guidance_scale, num_inference_steps: None: as the model's folder says (`backbone/usual.py`), else 7.5 and 25.

    Raises:
        UserError: a size that the codec cannot hold, a prompt longer than the tower's limit.
    """
    how: dict[str, Any] = {"negative_prompt": negative_prompt, "height": height, "width": width}
    how |= _usual(backbone, IMAGE_GUIDANCE, guidance_scale, num_inference_steps)
    return to_bytes(_asked(backbone, prompts, seeds, progress, **how).images)


def clips(
    *,
    backbone: Any,
    prompts: Sequence[str],
    images: np.ndarray | None = None,
    seeds: Sequence[int],
    negative_prompt: str = "",
    guidance_scale: float | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Clips uint8 ``[b t h w c]`` by a text → video or image → video model's vanilla pipeline, one per prompt and seed.

    Args:
        images: first frames, uint8 ``[b h w c]`` of the clips' size, for a model that starts from an image; its
            pipeline makes one clip at a time.
        guidance_scale, num_inference_steps: None: as the model's folder says (`backbone/usual.py`), else 5 and 25.

    Raises:
        UserError: a size or a number of frames that the codec cannot hold, a prompt longer than the tower's limit; a
            first frame for a model of text alone, or none for one of images.
    """
    frames = backbone.num_frames if num_frames is None else num_frames
    backbone.check_frames(frames)
    check_start(backbone, images is not None)
    how: dict[str, Any] = {"negative_prompt": negative_prompt, "height": height, "width": width, "num_frames": frames}
    how |= _usual(backbone, CLIP_GUIDANCE, guidance_scale, num_inference_steps)
    if images is None:
        return to_bytes(np.asarray(_asked(backbone, prompts, seeds, progress, **how).frames))
    check_counts(prompts, images, seeds)
    made = [
        _asked(backbone, [prompt], [seed], progress, image=Image.fromarray(image), **how).frames
        for prompt, image, seed in zip(prompts, images, seeds, strict=True)
    ]
    return to_bytes(np.concatenate(made))


def _usual(backbone: Any, guidance: float, scale: float | None, steps: int | None) -> dict[str, Any]:
    """Guidance and steps: those asked for, else the model's own, else the usual ones."""
    asked = {"guidance_scale": scale, "num_inference_steps": steps}
    own = {"guidance_scale": guidance, "num_inference_steps": STEPS} | usual.of(backbone)
    return own | {name: value for name, value in asked.items() if value is not None}


def starts_from_image(backbone: Any) -> bool:
    """Whether a model of clips is told its first frame beside the words."""
    return getattr(backbone, "starts_from", "text") == "image"


def check_start(backbone: Any, given: bool) -> None:
    """Raises UserError for a first frame that a model of clips has no place for, or one that it lacks."""
    wanted = starts_from_image(backbone)
    if wanted and not given:
        raise UserError("sample", "no first frame", "one, for this model starts from an image", "give an image")
    if given and not wanted:
        raise UserError("sample", "a first frame", "none, for this model starts from text alone", "leave it out")


@torch.no_grad()
def embeddings(prior: Prior, prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str = "") -> Tensor:
    """Image embeddings ``[b d]`` by the prior's vanilla pipeline, one per prompt and seed.

    Each is drawn alone, so that it does not depend on its neighbours.
    """
    prior.check_prompts([*prompts, negative_prompt])
    pipeline = prior.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(prior=folded(prior.prior))
    away = [negative_prompt] if negative_prompt else None
    made = []
    with evaluating(prior):
        for prompt, seed in zip(prompts, seeds, strict=True):
            draw = torch.Generator().manual_seed(seed)
            made.append(pipeline([prompt], negative_prompt=away, generator=draw).image_embeds)
    return torch.cat(made)


@torch.no_grad()
def _asked(
    backbone: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    progress: Progress | None,
    *,
    negative_prompt: str,
    height: int | None,
    width: int | None,
    num_inference_steps: int,
    **more: Any,
) -> Any:
    """What the vanilla pipeline answers. An empty negative prompt is left to it, which may take zeros for it."""
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(**{part_of(backbone): folded(backbone.network)})
    height, width = (own if given is None else given for own, given in zip(backbone.size, (height, width), strict=True))
    check_counts(prompts, None, seeds, num_inference_steps=num_inference_steps)
    check_size(height, width, backbone.multiple)
    backbone.check_prompts([*prompts, negative_prompt])  # vanilla would cut a long prompt
    with evaluating(backbone):
        return pipeline(
            prompt=list(prompts),
            negative_prompt=[negative_prompt] * len(prompts) if negative_prompt else None,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            callback_on_step_end=told_each_step(progress, num_inference_steps),
            **more,
        )


def part_of(backbone: Any) -> str:
    """What the network that adapters are attached to is called in its pipeline."""
    return next(str(name) for name, module in backbone.parts().items() if module is backbone.network)


def folded(network: Any) -> Any:
    """A copy in 32 bits with its LoRA layers folded in, as an export has them; the network itself where it is such, or
    is held in fewer bits to sample."""
    if getattr(network, HELD, False):
        return network
    is_plain = all(weight.dtype == torch.float32 for weight in network.parameters())
    return network if is_plain and not hasattr(network, "peft_config") else merged(network).eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module without dropout for a while; what was training goes on training."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] → uint8, rounded as diffusers rounds for PIL."""
    return (frames * 255).round().astype(np.uint8)


def told_each_step(progress: Progress | None, steps: int) -> Callable[..., dict[str, Any]] | None:
    if progress is None:
        return None

    def told(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(step + 1, steps)
        return tensors

    return told


def check_counts(
    prompts: Sequence[str] | None, images: np.ndarray | None, seeds: Sequence[int], **numbers: int
) -> None:
    if prompts is None and images is None:
        raise UserError("sample", "neither prompt nor image", "one of them, or both", "add --prompt or --image")
    for name, number in numbers.items():
        if number < 1:
            raise UserError(name, str(number), "at least 1", "choose more")
    for name, given in (("prompts", prompts), ("images", images)):
        if given is not None and len(given) != len(seeds):
            raise UserError("sample", f"{len(given)} {name} and {len(seeds)} seeds", "one seed each", "correct one")


def check_size(height: int, width: int, multiple: int) -> None:
    for name, pixels in (("height", height), ("width", width)):
        if pixels < 1 or pixels % multiple:
            near = max(multiple, round(pixels / multiple) * multiple)
            raise UserError(name, f"{pixels} pixels", f"a multiple of {multiple}, by this model's codec", f"try {near}")
