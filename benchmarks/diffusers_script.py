"""diffusers' own ``train_text_to_image_lora.py``, unmodified, as an arm: the file is given by its path.

    pip install accelerate datasets     # what it needs besides the project

Its loop reports every step to accelerate's trackers: that call is where the arm's gate stands. Where torchvision is not
installed, the six transforms that it takes from there are stood in for, by PIL and torch as torchvision's own are.
"""

import importlib.machinery
import importlib.util
import random
import runpy
import sys
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.rounds import Arm, Gate


def script(path: Path, words: list[str]) -> Arm:
    """The script with these words of its command line."""

    def arm(gate: Gate) -> None:
        import accelerate

        if importlib.util.find_spec("torchvision") is None:
            _stand_in()
        own = accelerate.Accelerator.log

        def log(self: Any, *args: Any, **kwargs: Any) -> None:
            own(self, *args, **kwargs)
            gate()

        accelerate.Accelerator.log = log
        sys.argv = [str(path), *words]
        runpy.run_path(str(path), run_name="__main__")

    return arm


def _stand_in() -> None:
    import diffusers
    import transformers  # both look for torchvision, and must not find this
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    assert diffusers, transformers
    assert StableDiffusionPipeline, CLIPTextModel
    package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    for made in (Compose, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, InterpolationMode):
        setattr(transforms, made.__name__, made)
    transforms.Lambda = lambda work: work  # type: ignore[attr-defined]
    package.transforms = transforms  # type: ignore[attr-defined]
    for module in (package, transforms):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module


class InterpolationMode(Enum):
    BICUBIC, BILINEAR, LANCZOS, NEAREST = "bicubic", "bilinear", "lanczos", "nearest"


class Compose:
    def __init__(self, parts: list[Callable[[Any], Any]]) -> None:
        self.parts = parts

    def __call__(self, image: Any) -> Any:
        for part in self.parts:
            image = part(image)
        return image


class Resize:
    """The shorter side to a length."""

    def __init__(self, side: int, interpolation: InterpolationMode) -> None:
        self.side, self.how = side, Image.Resampling[interpolation.name]

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = self.side / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        return image if size == image.size else image.resize(size, self.how)


class CenterCrop:
    def __init__(self, side: int) -> None:
        self.side = side

    def place(self, room: int) -> int:
        return room // 2

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = self.place(image.width - self.side), self.place(image.height - self.side)
        return image.crop((left, top, left + self.side, top + self.side))


class RandomCrop(CenterCrop):
    def place(self, room: int) -> int:
        return random.randint(0, room)


class RandomHorizontalFlip:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


class ToTensor:
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    def __init__(self, mean: list[float], deviation: list[float]) -> None:
        self.mean, self.deviation = torch.tensor(mean)[:, None, None], torch.tensor(deviation)[:, None, None]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.deviation
