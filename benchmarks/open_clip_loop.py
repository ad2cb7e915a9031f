"""open_clip's own training loop and data pipeline, from a folder that holds ``open_clip/`` and ``open_clip_train/``.

    pip install --no-deps --target <folder> open_clip_torch 'webdataset<=0.2.86' ftfy wcwidth pandas python-dateutil

Its data pipeline stops at webdataset 1.0's end-of-shard marks, so the folder holds the release that it asks for; it is
found before ours, in that process alone. Without torchvision, names from it stand in that fail when they are called:
the loop calls none of them, since the benchmark hands it a transform of its own (PIL's bicubic resize, CLIP's mean and
deviation).
"""

import argparse
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Named(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Absent(metaclass=_Named):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("torchvision is not installed, and this benchmark does without")


class _Stand(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent


def _stand_in_for_torchvision() -> None:
    if importlib.util.find_spec("torchvision") is not None:
        return
    importlib.import_module("transformers")  # it looks for torchvision, and must not find this
    names = ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional")
    made = {f"torchvision{name}": _Stand(f"torchvision{name}") for name in names}
    sys.modules.update(made)
    for name, module in made.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)


def transform(side: int) -> Callable[[Image.Image], torch.Tensor]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def apply(image: Image.Image) -> torch.Tensor:
        resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float().div_(255)
        return (pixels - mean) / std

    return apply


class Loop:
    """A model of open_clip's with the given towers, and its loop over shards.

    Args:
        path: the folder.
        shards: pattern of tars with ``key.jpg`` and ``key.txt``.
        model: arguments of `open_clip.CLIP`.
        tokenize: captions → ids ``[b l]``.
        batch_size: pairs of a step.
    """

    def __init__(
        self, path: Path, shards: str, model: dict[str, Any], tokenize: Callable[[Any], torch.Tensor], batch_size: int
    ) -> None:
        _stand_in_for_torchvision()
        sys.path.insert(0, str(path))
        self.data = importlib.import_module("open_clip_train.data")
        self.train = importlib.import_module("open_clip_train.train")
        package, losses = importlib.import_module("open_clip"), importlib.import_module("open_clip.loss")
        self.model = package.CLIP(**model, output_dict=True)
        self.loss = losses.ClipLoss(cache_labels=True)  # as its create_loss does
        self.tokenize, self.side, self.epoch = tokenize, model["vision_cfg"]["image_size"], 0
        self.optimizer = torch.optim.AdamW(self._groups(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
        self.args = argparse.Namespace(
            device="cpu",
            precision="fp32",
            batch_size=batch_size,
            accum_freq=1,
            grad_clip_norm=1.0,
            skip_scheduler=True,
            log_every_n_steps=100,
            workers=0,
            train_data=shards,
            train_num_samples=None,
            train_data_upsampling_factors=None,
            seed=0,
            rank=0,
            local_rank=0,
            world_size=1,
            **dict.fromkeys(("distill", "horovod", "wandb", "dataset_resampled"), False),
        )

    def _groups(self) -> list[dict[str, Any]]:
        """Decay on matrices alone, as its main does."""
        weights = dict(self.model.named_parameters())
        plain = [w for n, w in weights.items() if w.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit" in n]
        kept = {id(w) for w in plain}
        matrices = [w for w in weights.values() if id(w) not in kept]
        return [{"params": plain, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.01}]

    def run(self, steps: int) -> int:
        """One of its epochs, made of so many steps, with the making of its loader; the samples that it took."""
        self.args.train_num_samples = steps * self.args.batch_size
        data = self.data.get_wds_dataset(self.args, transform(self.side), True, self.epoch, False, self.tokenize)
        self.train.train_one_epoch(
            self.model, {"train": data}, self.loss, self.epoch, self.optimizer, None, None, None, self.args
        )
        self.epoch += 1
        return steps * self.args.batch_size
