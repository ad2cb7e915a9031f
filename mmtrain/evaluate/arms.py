"""The two that are compared, and what both start from: the artifact's backbone without adapters, and with them.

Without a bridge the backbone puts the text tower's own embedding in the place of the image's: the untrained baseline.
Sampling itself is `sample/generate.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmtrain import artifact, config
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case
from mmtrain.sample.generate import STEPS, VideoSampler, draw_images

WAYS = ("sd", "none", "image")
"""A first frame that Stable Diffusion draws from the prompt; none at all; the true one."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of sampling, alike for both; what is None is the sampler's own usual.

    Attributes:
        first_frame: folder or hub id of the Stable Diffusion that draws first frames.
    """

    guidance_scale: float | None = None
    num_inference_steps: int = STEPS
    negative_prompt: str = ""
    first_frame: str


class Model(Protocol):
    """One of the two: makes clips uint8 ``[b t h w c]`` of cases, from first frames uint8 ``[b h w c]`` or None."""

    @property
    def side(self) -> int:
        """Pixels of a clip's height and width."""

    def __call__(
        self, cases: Sequence[Case], images: np.ndarray | None, progress: Callable[[int, int], None]
    ) -> np.ndarray: ...


def arms(folder: Path, settings: Settings) -> Iterator[tuple[str, Model]]:
    """``base`` and ``adapted``, each loaded when its turn comes."""
    yield "base", Sampled(_bare(folder), settings)
    yield "adapted", Sampled(artifact.load(folder)[0], settings)


def _bare(folder: Path) -> Any:
    """The artifact's backbone, without adapters.

    Raises:
        UserError: it makes no videos from text.
    """
    backbone = config.build(artifact.read(folder)["backbone"])
    if getattr(backbone, "text", None) is None:
        wanted = "a Stable Video Diffusion with a text tower"
        raise UserError(str(folder), f"its backbone is {type(backbone).__name__}", wanted, "evaluate another artifact")
    return backbone


class Sampled:
    """A backbone as the sampler drives it."""

    def __init__(self, backbone: Any, settings: Settings) -> None:
        self.sampler, self.settings = VideoSampler(backbone=backbone), settings
        self.side = self.sampler.side

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
            progress=progress,
        )


class FirstFrames:
    """The first frames that both models start from, each made once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._drawn: dict[str, np.ndarray] = {}
        self._painter: StableDiffusion | None = None

    def __call__(self, way: str, cases: Sequence[Case], side: int) -> np.ndarray | None:
        """uint8 ``[b h w c]``, or None for the way that has none."""
        if way == "none":
            return None
        if way == "image":
            return np.stack([case.first_frame(side, side) for case in cases])
        new = [case for case in cases if case.name not in self._drawn]
        if new:
            self._drawn |= dict(zip((case.name for case in new), self._draw(new, side), strict=True))
        return np.stack([self._drawn[case.name] for case in cases])

    def _draw(self, cases: Sequence[Case], side: int) -> np.ndarray:
        if self._painter is None:
            self._painter = StableDiffusion(path=self.settings.first_frame)
        return draw_images(
            backbone=self._painter,
            prompts=[case.prompt for case in cases],
            seeds=[case.seed for case in cases],
            height=side,
            width=side,
            num_inference_steps=self.settings.num_inference_steps,
        )
