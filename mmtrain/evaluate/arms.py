"""The two that are compared, and what both start from: an artifact's backbone without its adapters, and with them.

Without a bridge the backbone puts the text tower's own embedding in the place of the image's: the untrained baseline.
Sampling itself is `sample/generate.py`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mmtrain import artifact
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case
from mmtrain.sample.generate import STEPS, VideoSampler
from mmtrain.sample.generate import images as draw
from mmtrain.threads import calibrate

WAYS = ("sd", "none", "image")
"""A first frame that Stable Diffusion draws from the prompt; none at all; the true one."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of sampling, alike for both; what is None is the model's own.

    Attributes:
        first_frame: folder or hub id of the Stable Diffusion that draws first frames.
    """

    first_frame: str
    guidance_scale: float | None = None
    num_inference_steps: int = STEPS
    negative_prompt: str = ""
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None


class Model(Protocol):
    """One of the two: makes clips uint8 ``[b t h w c]`` of cases, from first frames uint8 ``[b h w c]`` or None."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""

    def __call__(
        self, cases: Sequence[Case], images: np.ndarray | None, progress: Callable[[int, int], None]
    ) -> np.ndarray: ...


def arms(folder: Path, settings: Settings, cases: Sequence[Case]) -> Iterator[tuple[str, Model]]:
    """``base`` and ``adapted``, each loaded when its turn comes.

    Raises:
        UserError: the artifact makes no videos from text, or a prompt is too long for it.
    """
    base = artifact.base(folder)
    if getattr(base, "text", None) is None:
        wanted = "a Stable Video Diffusion with a text tower"
        raise UserError(str(folder), f"its backbone is a {type(base).__name__}", wanted, "evaluate another artifact")
    base.text([case.prompt for case in cases])  # a prompt that is too long is found before the first clip
    yield "base", _calibrated(Sampled(base, settings))
    del base
    yield "adapted", Sampled(artifact.load(folder)[0], settings)


class Sampled:
    """A backbone as the sampler drives it."""

    def __init__(self, backbone: Any, settings: Settings) -> None:
        self.sampler, self.settings = VideoSampler(backbone=_placed(backbone)), settings
        side = self.sampler.side
        self.size = (settings.height or side, settings.width or side)

    def __call__(
        self, cases: Sequence[Case], images: np.ndarray | None, progress: Callable[[int, int], None]
    ) -> np.ndarray:
        return self.sampler.video(
            prompts=[case.prompt for case in cases],
            images=images,
            seeds=[case.seed for case in cases],
            negative_prompt=self.settings.negative_prompt,
            guidance_scale=self.settings.guidance_scale,
            num_inference_steps=self.settings.num_inference_steps,
            num_frames=self.settings.num_frames,
            height=self.size[0],
            width=self.size[1],
            progress=progress,
        )


def _calibrated(sampled: Sampled) -> Sampled:
    """With as many threads as pay, unless the environment or a graphics card decides."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        calibrate(lambda: sampled.sampler.video(prompts=[""], seeds=[0], num_frames=2, num_inference_steps=1))
    return sampled


def _placed(model: Any) -> Any:
    """On the graphics card, where there is one."""
    return model.to("cuda") if torch.cuda.is_available() else model


class FirstFrames:
    """The first frames that both models start from, each made once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._drawn: dict[str, np.ndarray] = {}
        self._painter: StableDiffusion | None = None

    def __call__(self, way: str, cases: Sequence[Case], size: tuple[int, int]) -> np.ndarray | None:
        """uint8 ``[b h w c]``, or None for the way that has none."""
        if way == "none":
            return None
        if way == "image":
            return np.stack([case.first_frame(*size) for case in cases])
        new = [case for case in cases if case.name not in self._drawn]
        if new:
            self._drawn |= dict(zip((case.name for case in new), self._draw(new, size), strict=True))
        return np.stack([self._drawn[case.name] for case in cases])

    def _draw(self, cases: Sequence[Case], size: tuple[int, int]) -> np.ndarray:
        if self._painter is None:
            self._painter = _placed(StableDiffusion(path=self.settings.first_frame))
        return draw(
            backbone=self._painter,
            prompts=[case.prompt for case in cases],
            seeds=[case.seed for case in cases],
            height=size[0],
            width=size[1],
            num_inference_steps=self.settings.num_inference_steps,
        )
