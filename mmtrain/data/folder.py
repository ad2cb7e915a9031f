"""A folder of somebody's images and clips as a `Source`, packed on first use, whole or in two parts: one to learn from,
one that is held out. The packing itself is `pack.py`."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmtrain.data.buckets import Buckets
from mmtrain.data.index import IMAGES, VIDEOS, Index
from mmtrain.data.pack import pack
from mmtrain.data.source import Source
from mmtrain.data.tables import TABLES
from mmtrain.errors import UserError
from mmtrain.rng import key


def folder(
    *,
    folder: str,
    shards: str = "data/shards/folders",
    caption: str | None = None,
    num_frames: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    size: int | None = None,
    buckets: Buckets | None = None,
    max_bad_fraction: float = 0.0,
    part: Literal["all", "train", "heldout"] = "all",
    heldout_fraction: float = 0.1,
    split_seed: int = 0,
    where: Sequence[str] = (),
) -> Source:
    """Shards of a folder, written once per content below ``shards``, and the source that reads them.

    Args:
        folder: images and MP4 clips with captions beside them, in metadata.csv or in metadata.jsonl.
        shards: where the packed shards are kept, one folder per content.
        caption: template for files without a caption; ``{name}`` is the file's name in words. None: refuse them.
        num_frames, stride, fps, size, buckets: as for `Source`.
        max_bad_fraction: share of the files that may fail to decode; each is named.
        part: all of the folder, or what is left of it without the held-out part, or that part.
        heldout_fraction: share of the samples that decode that is held out, at least one of them.
        where: clauses such as ``num_frames>=8``, by which clips are taken and pictures left out, or the reverse.
        split_seed: which are, by their names alone: a file that is added moves few others.

    Raises:
        UserError: the folder is missing or empty, or what `pack` and `Source` refuse.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError("dataset.folder", folder, "a folder that exists", "check the path")
    target = Path(shards) / f"{root.resolve().name}-{_content(root, caption, where)}"
    if not target.exists():
        packed = pack(root, target, caption_template=caption, where=where, max_bad_fraction=max_bad_fraction)
        for name, why in packed.bad.items():
            print(f"left out {name}: {why}", file=sys.stderr)
        if packed.missed:
            print(f"left out {packed.missed} files by dataset.where={list(where)}", file=sys.stderr)
    if part != "all":
        target = _part(target, part, heldout_fraction, split_seed)
    return Source(
        shards=str(target),
        num_frames=num_frames,
        stride=stride,
        fps=fps,
        size=size,
        buckets=buckets,
        max_bad_fraction=max_bad_fraction,
    )


def _part(whole: Path, part: str, fraction: float, seed: int) -> Path:
    """Shards of one part of packed shards, beside them."""
    if not 0 < fraction < 1:
        raise UserError("dataset.heldout_fraction", f"{fraction:g}", "a share between 0 and 1", "correct it")
    names = Index.of(str(whole)).keys
    if len(names) < 2:
        wanted, fix = "at least two, one to hold out", "add some, or set dataset.part=all and heldout=null"
        raise UserError(str(whole), f"{len(names)} sample", wanted, fix)
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    held = set(sorted(names, key=lambda name: key("heldout", seed, name))[:count])
    target = whole.with_name(f"{whole.name}-{part}-{seed}-{fraction:g}")
    if not target.exists():
        pack(whole, target, keys=held if part == "heldout" else set(names) - held)
    return target


def _content(root: Path, caption: str | None, where: Sequence[str]) -> str:
    """Hash of the names and bytes that packing reads, and of how it is told to."""
    told = repr(caption) if not where else repr((caption, list(where)))
    total = hashlib.blake2b(told.encode(), digest_size=4)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.suffix.lower().lstrip(".") in {*IMAGES, *VIDEOS, "txt"} or path.name in TABLES:
            total.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
    return total.hexdigest()
