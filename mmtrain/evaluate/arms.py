"""The two that are compared, and what both start from: an artifact's backbone without its adapters, and with them.

The base of a bridge puts the text tower's own embedding in the place of the image's: the untrained baseline. Adapters
that bring no text were trained on the image's own, and are sampled with it.
Sampling itself is `sample/video.py` and `sample/generate.py`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import numpy as np
import torch

from mmtrain import artifact, config
from mmtrain.backbone import usual
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case
from mmtrain.sample.chunks import long_video
from mmtrain.sample.generate import clips as shoot
from mmtrain.sample.generate import images as draw
from mmtrain.sample.generate import to_bytes
from mmtrain.sample.held import Bits, hold, placed
from mmtrain.sample.strength import opened
from mmtrain.sample.video import VideoSampler
from mmtrain.threads import calibrate

WAYS = ("sd", "none", "image")
"""A first frame that Stable Diffusion draws from the prompt; none at all; the true one. Models of text alone have none,
a Wan of images has one always."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of sampling, alike for both; what is None is as the model's folder says (`backbone/usual.py`), else its own.

    Attributes:
        first_frame: folder or hub id of the Stable Diffusion that draws first frames; of an artifact on one, its base
            draws those of the base, and it those of the adapted.
        first_frame_guidance: its guidance scale.
        guidance_above: of Stable Video Diffusion alone, the noise level σ below which nothing is guided.
        strength: of the artifact's adapters; at 0 the adapted is the base, bit for bit.
        bits: in which the networks of both are held (`sample/held.py`).
        base_bits: of the base alone; None: as the adapted. At strength 0 bits alone are compared.
    """

    first_frame: str
    first_frame_guidance: float | None = None
    guidance_scale: float | None = None
    guidance_above: float | None = None
    num_inference_steps: int | None = None
    negative_prompt: str = ""
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    strength: float = 1.0
    bits: Bits = 32
    base_bits: Bits | None = None

    def of(self, folder: Path) -> "Settings":
        """With what an artifact says of itself where nothing was asked, so that its base is sampled as it is."""
        said = usual.read(folder).items()
        return replace(self, **{name: value for name, value in said if getattr(self, name) is None})


class Model(Protocol):
    """One of the two: makes clips uint8 ``[b t h w c]`` of cases, from first frames uint8 ``[b h w c]`` or None."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""

    @property
    def length(self) -> int | None:
        """Frames of the chunks that longer clips are made of; None for a model that makes none."""

    def __call__(
        self, cases: Sequence[Case], images: np.ndarray | None, progress: Callable[[int, int], None]
    ) -> np.ndarray: ...


def usual_ways(folder: Path) -> tuple[str, ...]:
    """The way in which an artifact is compared unless another is asked for, known before its weights are read."""
    video = issubclass(_family(folder), StableVideoDiffusion)
    return ("sd",) if video or _starts_from_image(folder) else ("none",)


def check_ways(folder: Path, ways: Sequence[str]) -> None:
    """Raises UserError for first frames that a model of text alone cannot start from, and for none where it must."""
    family = _family(folder)
    if _starts_from_image(folder):
        if "none" in ways:
            raise UserError("--ways", "none for a model that starts from an image", "sd or image", "choose another")
        return
    if not issubclass(family, StableVideoDiffusion) and tuple(ways) != ("none",):
        came = f"{','.join(ways)} for a {family.__name__}, which starts from no picture"
        raise UserError("--ways", came, "none", "leave --ways out")


def _family(folder: Path) -> type:
    found = config.locate(artifact.read(folder)["backbone"]["_target_"])
    return found if isinstance(found, type) else get_type_hints(found)["return"]  # a class, or what makes a fresh one


def _starts_from_image(folder: Path) -> bool:
    return artifact.read(folder)["backbone"].get("starts_from") == "image"


def arms(folder: Path, settings: Settings, cases: Sequence[Case]) -> Iterator[tuple[str, Model]]:
    """``base`` and ``adapted``, each loaded when its turn comes.

    Raises:
        UserError: the artifact makes nothing from text, or a prompt is too long for it.
    """
    base = artifact.base(folder)
    prompts = [case.prompt for case in cases]
    if isinstance(base, StableVideoDiffusion) and base.text is not None:
        base.text(prompts)  # a prompt that is too long is found before the first clip
    elif getattr(base, "makes", None) in ("image", "video") and not isinstance(base, StableVideoDiffusion):
        base.check_prompts(prompts)
    else:
        wanted = "a model of pictures or video that reads text"
        raise UserError(str(folder), f"its backbone is a {type(base).__name__}", wanted, "evaluate another artifact")
    reads = artifact.brings_text(artifact.read(folder))
    yield "base", _calibrated(_model(base, settings, settings.base_bits or settings.bits, reads))
    del base
    backbone = opened(str(folder), strength=settings.strength)[0]
    yield "adapted", _model(backbone, settings, settings.bits, reads)


def _model(backbone: Any, settings: Settings, bits: Bits, reads: bool) -> "Sampled | Told":
    if bits < 32:
        hold(backbone, bits)
    if isinstance(backbone, StableVideoDiffusion):
        return Sampled(backbone, settings, reads=reads)
    if settings.guidance_above is not None:
        came = f"{settings.guidance_above:g} for a {type(backbone).__name__}"
        raise UserError("--guidance-above", came, "a Stable Video Diffusion", "leave it out")
    return Told(backbone, settings)


class Sampled:
    """A backbone as the sampler drives it; what is longer than its own clips is made in chunks (`sample/chunks.py`).

    Args:
        reads: whether words stand in the place of the first frame's token, where there is a first frame.
    """

    def __init__(self, backbone: Any, settings: Settings, *, reads: bool = True) -> None:
        self.sampler, self.settings, self.reads = VideoSampler(backbone=placed(backbone)), settings, reads
        side = self.sampler.side
        self.length = int(self.sampler.pipeline.unet.config.num_frames)
        self.size = (settings.height or side, settings.width or side)

    def __call__(
        self, cases: Sequence[Case], images: np.ndarray | None, progress: Callable[[int, int], None]
    ) -> np.ndarray:
        frames = self.settings.num_frames or self.length
        make = partial(long_video, self.sampler) if frames > self.length else self.sampler.frames
        return to_bytes(
            make(
                prompts=[case.prompt for case in cases],
                images=images,
                tokens="text" if self.reads or images is None else "image",
                seeds=[case.seed for case in cases],
                negative_prompt=self.settings.negative_prompt,
                guidance_scale=self.settings.guidance_scale,
                guidance_above=self.settings.guidance_above,
                num_inference_steps=self.settings.num_inference_steps,
                num_frames=frames,
                height=self.size[0],
                width=self.size[1],
                progress=progress,
            )
        )


class Told:
    """A model of text, or of text and a first frame, as its vanilla pipeline drives it; a picture is a clip of one
    frame."""

    length = None

    def __init__(self, backbone: Any, settings: Settings) -> None:
        self.backbone, self.settings = placed(backbone), settings
        height, width = self.backbone.size
        self.size = (settings.height or height, settings.width or width)

    def __call__(
        self, cases: Sequence[Case], images: np.ndarray | None, progress: Callable[[int, int], None]
    ) -> np.ndarray:
        how: dict[str, Any] = {"prompts": [case.prompt for case in cases], "seeds": [case.seed for case in cases]}
        how |= {"height": self.size[0], "width": self.size[1], "negative_prompt": self.settings.negative_prompt}
        how |= {"num_inference_steps": self.settings.num_inference_steps, "progress": progress}
        if self.settings.guidance_scale is not None:
            how["guidance_scale"] = self.settings.guidance_scale
        if self.backbone.makes == "image":
            return draw(backbone=self.backbone, **how)[:, None]
        return shoot(backbone=self.backbone, images=images, num_frames=self.settings.num_frames, **how)


def _calibrated(model: "Sampled | Told") -> "Sampled | Told":
    """With as many threads as pay, unless the environment or a graphics card decides."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        calibrate(lambda: _short(model))
    return model


def _short(model: "Sampled | Told") -> None:
    if isinstance(model, Sampled):
        model.sampler.video(prompts=[""], seeds=[0], num_frames=2, num_inference_steps=1)
    elif model.backbone.makes == "image":
        draw(backbone=model.backbone, prompts=[""], seeds=[0], num_inference_steps=1)


class FirstFrames:
    """The first frames that both models start from, each made once; or, where an artifact draws them, those that its
    base draws for the base, and its own for the adapted."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.styled = (Path(settings.first_frame) / artifact.FACTS).is_file()
        own = usual.read(settings.first_frame) if self.styled else {}  # of both, so that they are drawn alike
        asked = {"num_inference_steps": settings.num_inference_steps, "guidance_scale": settings.first_frame_guidance}
        self.how = own | {name: value for name, value in asked.items() if value is not None}
        self._drawn: dict[tuple[str, str], np.ndarray] = {}
        self._painters: dict[str, StableDiffusion] = {}

    def __call__(self, arm: str, way: str, cases: Sequence[Case], size: tuple[int, int]) -> np.ndarray | None:
        """uint8 ``[b h w c]``, or None for the way that has none."""
        if way == "none":
            return None
        if way == "image":
            return np.stack([case.first_frame(*size) for case in cases])
        who = arm if self.styled else ""
        new = [case for case in cases if (who, case.name) not in self._drawn]
        if new:
            self._drawn |= dict(zip(((who, case.name) for case in new), self._draw(who, new, size), strict=True))
        return np.stack([self._drawn[who, case.name] for case in cases])

    def _draw(self, who: str, cases: Sequence[Case], size: tuple[int, int]) -> np.ndarray:
        if who not in self._painters:
            self._painters = {who: placed(self._painter(who))}
        return draw(
            backbone=self._painters[who],
            prompts=[case.prompt for case in cases],
            seeds=[case.seed for case in cases],
            height=size[0],
            width=size[1],
            **self.how,
        )

    def _painter(self, who: str) -> StableDiffusion:
        painter = self._opened(who)
        if self.settings.bits == 16:
            hold(painter, 16)
        return painter

    def _opened(self, who: str) -> StableDiffusion:
        where = self.settings.first_frame
        if not who:
            return StableDiffusion(path=where)
        painter = artifact.base(where) if who == "base" else artifact.load(where)[0]
        if not isinstance(painter, StableDiffusion):
            came = f"{where}, an artifact on a {type(painter).__name__}"
            raise UserError("--first-frame", came, "one on a Stable Diffusion", "name another")
        return painter
