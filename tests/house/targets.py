"""Tiny constructors for the config tests. They build nothing real."""

from pathlib import Path
from typing import Any, Literal


class Source:
    def __init__(self, *, shards: str, num_frames: int | None, size: int | None, window: int = 8) -> None:
        self.shards, self.num_frames, self.size, self.window = shards, num_frames, size, window


class Backbone:
    def __init__(self, *, path: Path, channels: tuple[int, ...], pooler: "Pooler | None" = None) -> None:
        self.path, self.channels, self.pooler = path, channels, pooler


class Pooler:
    def __init__(self, *, kind: Literal["mean", "first"]) -> None:
        self.kind = kind


class Lora:
    def __init__(self, *, rank: int, alpha: float, targets: list[str], dropout: float = 0.0) -> None:
        self.rank, self.alpha, self.targets, self.dropout = rank, alpha, targets, dropout


class Objective:
    def __init__(self, *, weights: dict[str, float]) -> None:
        self.weights = weights


class Trainer:
    def __init__(self, *, max_steps: int, accelerator: str = "cpu", deterministic: bool = True) -> None:
        self.max_steps, self.accelerator, self.deterministic = max_steps, accelerator, deterministic


def adamw(params: Any, *, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> dict[str, Any]:
    return {"params": params, "lr": lr, "betas": betas}
