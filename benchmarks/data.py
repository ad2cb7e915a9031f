"""Samples per second of our source beside webdataset's, one process each, in alternate rounds over the same samples.

    make bench-data

Ours reads in its random order and compares every checksum; webdataset reads from front to back, in shards' order,
through its shuffle buffer. Pixels leave ours as bytes, because floats are made on the device; an arm of its own makes
them here. Then seconds to open an index of a million samples, and to find the sample at a position of it, anywhere.
"""

import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import webdataset
from PIL import Image

from benchmarks.report import Report
from benchmarks.rounds import in_turn, spread
from mmtrain.batch import unit
from mmtrain.data import world
from mmtrain.data.facts import FACTS
from mmtrain.data.index import save
from mmtrain.data.scan import Shard
from mmtrain.data.shards import ShardWriter
from mmtrain.data.source import Source, read_members

ROUNDS, COUNT, PER_SHARD = 5, 200, 50
AIMS = {"loading, not decoded": 1.3, "JPEG 512 → 256": 2.0, "cached latents": 2.5}


def write(folder: Path) -> None:
    """JPEGs of 512² (about 25 kB), and latents [4 32 32] with text embeddings [16 256], float16, in both formats."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 6, (512, 512, 3))
    with (
        ShardWriter(folder / "jpeg", max_samples=PER_SHARD) as jpeg,
        ShardWriter(folder / "safetensors", max_samples=PER_SHARD) as ours,
        ShardWriter(folder / "npy", max_samples=PER_SHARD) as theirs,
    ):
        for i in range(COUNT):
            key, words = f"{i:06d}", b"a red circle moving left on black"
            drawn = Image.fromarray(world.render(world.scene(0, "train", i), num_frames=1)[0]).resize((512, 512))
            image = Image.fromarray(np.clip(drawn + np.roll(grain, i, 0), 0, 255).astype(np.uint8))
            jpeg.write(key, {"jpg": saved(lambda out, image=image: image.save(out, "JPEG", quality=85)), "txt": words})
            arrays = {"latents": rng.normal(size=(4, 32, 32)), "text": rng.normal(size=(16, 256))}
            halves = {name: array.astype(np.float16) for name, array in arrays.items()}
            tensors = {name: torch.from_numpy(half) for name, half in halves.items()}
            ours.write(key, {"safetensors": safetensors.torch.save(tensors), "txt": words})
            npys = {f"{n}.npy": saved(lambda out, half=half: np.save(out, half)) for n, half in halves.items()}
            theirs.write(key, {**npys, "txt": words})


def saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def stream(folder: Path) -> Any:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(100)


def loaded(source: Source, seed: int) -> Iterator[Any]:
    order = source.order(seed, 1)
    return (read_members(source.index, order[p]) for p in range(len(source)))


def rows(source: Source, seed: int) -> Iterator[Any]:
    order = source.order(seed, 1)
    return (source.row(order[p], seed, p, {}) for p in range(len(source)))


def as_floats(source: Source, seed: int) -> Iterator[Any]:
    for row in rows(source, seed):
        assert row.frames is not None
        yield unit(row.frames)


def resized(sample: dict[str, Any]) -> torch.Tensor:
    """As one does with webdataset: a PIL image, resized, as a float tensor in [-1, 1]."""
    image = sample["jpg"].resize((256, 256), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def floats(sample: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(sample[f"{name}.npy"]).float() for name in ("latents", "text")}


def counted(samples: Iterator[Any]) -> int:
    count = sum(1 for _ in samples)
    assert count == COUNT, count
    return count


def large(folder: Path, shards: int = 1000, samples: int = 1000) -> Path:
    """An index of a million samples (a clip, a caption and a json each), beside files that hold nothing."""
    folder.mkdir()
    found = {}
    members = np.arange(3 * samples)
    for n in range(shards):
        path = folder / f"{n:06d}.tar"
        path.touch()
        stat = path.stat()
        found[path.name] = Shard(
            path,
            stat.st_size,
            stat.st_mtime_ns,
            sha256=f"{n:064x}",
            ignored=0,
            keys=[f"{n:06d}{i:06d}" for i in range(samples)],
            vocabulary=("json", "mp4", "txt"),
            starts=np.arange(0, 3 * samples + 1, 3),
            offsets=members * 1024 + 512,
            sizes=np.full(3 * samples, 512),
            crcs=np.zeros(3 * samples, np.uint32),
            suffixes=(members % 3).astype(np.uint16),
            facts=np.zeros(samples, FACTS),
            keyframe_starts=np.arange(samples + 1),
            keyframes=np.zeros(samples, np.uint32),
        )
    save(folder, found)
    return folder


def seconds(work: Callable[[int], Any]) -> list[float]:
    found = []
    for seed in range(ROUNDS):
        start = time.perf_counter()
        made = work(seed)
        found.append(time.perf_counter() - start)
        del made  # clearing a million keys away is no part of opening
    return found


def sought(report: Report, folder: Path) -> None:
    """Opening and seeking; each seek is of an epoch and a window that were not looked at before."""
    where = str(large(folder))
    source = Source(shards=where)
    assert len(source) == 1_000_000
    rows = [
        {"what": what, "seconds, min – median – max": spread(seconds(work), ".3f"), "aim": f"< {aim:g}"}
        for what, work, aim in (
            ("opening it", lambda seed: Source(shards=where), 1.0),
            ("seeking", lambda seed: source.order(seed, 1)[987_654_321 + 123_456_789 * seed], 0.1),
        )
    ]
    report.table("an index of 1,000,000 samples, one process", rows)


def main() -> None:
    torch.set_num_threads(1)
    report = Report("data")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        images, latents = Source(shards=str(folder / "jpeg"), size=256), Source(shards=str(folder / "safetensors"))
        pairs: dict[str, tuple[Callable[[], Iterator[Any]], Callable[[int], Iterator[Any]]]] = {
            "loading, not decoded": (lambda: iter(stream(folder / "jpeg")), lambda seed: loaded(images, seed)),
            "JPEG 512 → 256": (
                lambda: iter(stream(folder / "jpeg").decode("pil").map(resized)),
                lambda seed: rows(images, seed),
            ),
            "cached latents": (
                lambda: iter(stream(folder / "npy").decode().map(floats)),
                lambda seed: rows(latents, seed),
            ),
        }
        seeds = itertools.count()  # another order each time
        for what, (theirs, ours) in pairs.items():
            arms = {
                "webdataset": lambda theirs=theirs: counted(theirs()),
                "mmtrain": lambda ours=ours: counted(ours(next(seeds))),
            }
            if what.startswith("JPEG"):
                arms["mmtrain, made into floats"] = lambda: counted(as_floats(images, next(seeds)))
            found = in_turn(arms, count=ROUNDS)
            report.arms(what, found, unit="sample", aims={"mmtrain": AIMS[what]})
        sought(report, folder / "large")
    report.write()


if __name__ == "__main__":
    main()
