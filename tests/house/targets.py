"""Tiny constructors for the tests of config and command line. They build nothing real."""

import os  # noqa: F401  (a config must not reach it through this module)
from pathlib import Path
from typing import Any, Literal


class Source:
    def __init__(self, *, shards: str, num_frames: int | None, size: int | None, window: int = 8) -> None:
        self.shards, self.num_frames, self.size, self.window = shards, num_frames, size, window


class Pooler:
    def __init__(self, *, kind: Literal["mean", "first"]) -> None:
        self.kind = kind


class Backbone:
    def __init__(self, *, path: Path, channels: tuple[int, ...], pooler: Pooler | None = None) -> None:
        self.path, self.channels, self.pooler = path, channels, pooler


class Lora:
    def __init__(self, *, rank: int, alpha: float, targets: list[str], dropout: float = 0.0) -> None:
        self.rank, self.alpha, self.targets, self.dropout = rank, alpha, targets, dropout


class Objective:
    def __init__(self, *, weights: dict[str, float]) -> None:
        self.weights = weights


class AdamW:
    def __init__(self, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), **others: Any) -> None:
        self.lr, self.betas, self.others = lr, betas, others


def fit(*, steps: int, threads: int | Literal["auto"] = "auto", deterministic: bool = True) -> dict[str, Any]:
    return {"steps": steps, "threads": threads, "deterministic": deterministic}
