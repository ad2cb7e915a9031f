"""A recipe's encoder over its shards, by as many processes as its trainer has devices; see `data/cache.py`."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig
from torch import Tensor

from mmtrain import config
from mmtrain.backbone.aligned import Aligned
from mmtrain.data.cache import encode_shards
from mmtrain.train.schedule import Fit


def stored(backbone: Any) -> torch.dtype:
    """What floating-point outputs of a backbone are kept as."""
    return backbone.stored if isinstance(backbone, Aligned) else torch.float16


def place_of(schedule: Fit) -> torch.device:
    """Where this process computes, as Lightning chooses: the accelerator at hand, unless the CPU is asked for."""
    if schedule.accelerator == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, torch.accelerator.current_device_index())


def encoders(backbone: Any) -> list[str]:
    """The parts that a backbone's `encode` asks."""
    return list(getattr(backbone, "encoders", ())) or [name for name, _ in backbone.named_children()]


@contextmanager
def encoding(backbone: Any, place: torch.device) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Inside, what encodes frames at a place: from the first on, copies of the parts that `encode` asks stand there.
    Afterwards the backbone has its own parts again, which were never moved."""
    own: dict[str, Any] = {}

    def on_place(frames: Tensor) -> dict[str, Tensor]:
        if place.type != "cpu" and not own:
            own.update({name: part for name in encoders(backbone) if (part := getattr(backbone, name)) is not None})
            for name, part in own.items():
                setattr(backbone, name, copy.deepcopy(part).to(place))
        found: dict[str, Tensor] = backbone.encode(frames.to(place))
        return found

    try:
        yield on_place
    finally:
        for name, part in own.items():
            setattr(backbone, name, part)


def encode(cfg: DictConfig, folder: Path, batch_size: int, progress: Callable[[int, int], None]) -> Path | None:
    """Write the encoder outputs of ``cfg.dataset`` into a folder; see `encode_shards`.

    With ``trainer.devices`` above 1, Lightning starts this command again in as many processes, each on a device of its
    own. On several machines that share the folder, give the same command on each.

    Args:
        cfg: a checked config.

    Returns:
        The folder; None in the processes that Lightning started.

    Raises:
        UserError: what `encode_shards` raises.
    """
    schedule: Fit = config.build(cfg.trainer)
    several = schedule.devices > 1
    fabric = Fabric(accelerator=schedule.accelerator, devices=schedule.devices, strategy="ddp" if several else "auto")
    fabric.launch()
    torch.set_num_threads(1 if schedule.threads == "auto" else schedule.threads)
    source, backbone = config.build(cfg.dataset), config.build(cfg.backbone).to(fabric.device)

    def on_device(frames: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = backbone.encode(frames.to(fabric.device))
        return found

    how = {"encoder_id": backbone.encoder_id, "batch_size": batch_size, "dtype": stored(backbone)}
    encode_shards(source, folder, encode=on_device, **how, progress=progress)
    return folder if fabric.is_global_zero else None
