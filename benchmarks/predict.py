"""From measured points to clusters and to ten million clips: the formulas of `docs/scaling.md`, and what they give.

Each formula is checked against something measured before it is used. Assumed and not measured: what a GPU and its
network reach (`Cluster`). Nothing here was run on a GPU.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.data import large, saved
from benchmarks.report import Report
from mmtrain.data.cache import encode_shards
from mmtrain.data.index import SIDECAR
from mmtrain.data.shards import ShardWriter
from mmtrain.data.source import Source

CLIPS = 10_000_000
BLOCK = 512  # bytes; a tar's header, and what each of its members is filled up to


@dataclass(frozen=True)
class Cluster:
    """What is assumed of a cluster of H100 or H200.

    Attributes:
        flops: operations a second that a GPU reaches in training, 45 % of 790 · 10¹².
        inside, between: bytes a second that a GPU sends within a machine of eight, and to another.
        latency: seconds of one hop.
        spread: share by which the slowest of n GPUs is behind the mean, per doubling of n.
    """

    flops: float = 0.45 * 790e12
    inside: float = 300e9
    between: float = 40e9
    latency: float = 20e-6
    spread: float = 0.003


def exchange_seconds(size: int, gpus: int, cluster: Cluster) -> float:
    """A ring all-reduce of ``size`` bytes: each GPU sends 2 (n − 1) / n of them, in 2 (n − 1) hops."""
    if gpus == 1:
        return 0.0
    rate = cluster.inside if gpus <= 8 else cluster.between
    return 2 * (gpus - 1) / gpus * size / rate + 2 * (gpus - 1) * cluster.latency


def step_seconds(flops: float, size: int, gpus: int, cluster: Cluster) -> float:
    """A step of each GPU's own batch; the exchange is added whole, as if nothing overlapped it."""
    slower = 1 + cluster.spread * np.log2(gpus)
    return float(flops / cluster.flops * slower + exchange_seconds(size, gpus, cluster))


def index_bytes(samples: int, each: float, fixed: float) -> float:
    """An index beside its shards."""
    return fixed + each * samples


def member_bytes(payload: int) -> int:
    """A member of a tar: its header, and its bytes filled up to a whole block."""
    return BLOCK + -(-payload // BLOCK) * BLOCK


def cache_bytes(latents: int, embeds: int, words: int) -> int:
    """A sample of the cache: mean and deviation of the latents and the embeddings in 16 bits, and its caption.

    The safetensors header and the json with the facts are members' worth of a block each.
    """
    return member_bytes(2 * 2 * latents + 2 * embeds + BLOCK) + member_bytes(words) + member_bytes(BLOCK // 2)


def _index_check(folder: Path) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """A line through two sizes, and a third that it must meet."""
    sizes = {}
    for shards in (20, 40, 200):
        where = large(folder / str(shards), shards=shards)
        Source(shards=str(where))
        sizes[1000 * shards] = (where / SIDECAR).stat().st_size
    (n, a), (m, b), (last, measured) = sizes.items()
    each = (b - a) / (m - n)
    fixed = a - each * n
    said = index_bytes(last, each, fixed)
    return [_row(f"index of {last:,} samples, MB", measured / 1e6, said / 1e6)], (each, fixed)


def _cache_check(folder: Path, samples: int = 20) -> list[dict[str, Any]]:
    picture = saved(lambda out: Image.new("RGB", (64, 64)).save(out, "PNG"))
    with ShardWriter(folder / "pixels", max_samples=samples) as writer:
        for i in range(samples):
            writer.write(f"{i:06d}", {"png": picture, "txt": b"a red circle moving left on black"})
    shape = (8, 4, 72, 128)
    parts = {"latents": torch.zeros(1, *shape), "latents_std": torch.ones(1, *shape), "embeds": torch.zeros(1, 1024)}
    encode_shards(
        Source(shards=str(folder / "pixels"), num_frames=1),
        folder / "cache",
        encode=lambda frames: {name: part.expand(len(frames), *part.shape[1:]) for name, part in parts.items()},
        encoder_id="a check",
        batch_size=4,
    )
    measured = sum(path.stat().st_size for path in (folder / "cache").glob("*.tar"))
    said = samples * cache_bytes(int(np.prod(shape)), 1024, 33)
    return [_row(f"cache of {samples} clips, MB", measured / 1e6, said / 1e6)]


def _row(what: str, measured: float, said: float) -> dict[str, Any]:
    return {"what": what, "measured": measured, "by the formula": said, "formula / measured": said / measured}


def predictions(report: Report, svd_flops: float, trained: int) -> None:
    """Tables of checks, of throughput, and of ten million clips.

    Args:
        svd_flops: of a training step on one clip of 14 frames, 576 × 1024, blocks computed again.
        trained: weights of its adapters.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks, (each, fixed) = _index_check(folder)
        checks += _cache_check(folder)
    report.table("the formulas against what was measured here", checks)
    cluster, size = Cluster(), 4 * trained
    rows = []
    alone = step_seconds(svd_flops, size, 1, cluster)
    for gpus in (1, 8, 64, 512):
        step = step_seconds(svd_flops, size, gpus, cluster)
        rows.append(
            {
                "GPUs": gpus,
                "s/step": step,
                "of it exchange, ms": 1e3 * exchange_seconds(size, gpus, cluster),
                "clips/s": gpus / step,
                "efficiency": alone / step,
                "hours for 10 M clips": CLIPS * step / gpus / 3600,
            }
        )
    report.table("predicted, not measured: SVD 14 × 576 × 1024 LoRA, one clip a GPU", rows)
    latents = 14 * 4 * 72 * 128
    encode = 14 * 2.6e12 / cluster.flops  # FACTS of the KL encoder: 2.6 TFLOP a frame of 576 × 1024
    report.table(
        "predicted, not measured: ten million clips of 14 × 576 × 1024",
        [
            {"what": "index, GB", "it takes": index_bytes(CLIPS, each, fixed) / 1e9},
            {"what": "cache of latents, TB", "it takes": CLIPS * cache_bytes(latents, 2048, 64) / 1e12},
            {"what": "encoding on 8 GPUs, days", "it takes": CLIPS * encode / 8 / 86400},
            {"what": "encoding on 512 GPUs, hours", "it takes": CLIPS * encode / 512 / 3600},
        ],
    )
