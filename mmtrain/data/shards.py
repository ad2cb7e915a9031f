"""Writing shards: plain WebDataset tars, and the world's samples in them.

The same input gives the same bytes (no times, no owners, members of a key sorted and side by side). A folder appears
whole or not at all: it is written beside its place and renamed. Reading is `index.py` and `source.py`. No torch here.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from mmtrain.data import brand, broken, world
from mmtrain.data.index import Index
from mmtrain.data.scan import split_name
from mmtrain.data.tar import TarWriter
from mmtrain.errors import UserError

WORLD_FPS = 25.0
Members = Mapping[str, bytes]  # suffix without its dot → content


def refuse_existing(folder: Path) -> None:
    """Raises UserError if the folder is there and holds anything."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(str(folder), "the output exists", "a new or empty folder", "choose another, or remove it first")


def write_members(tar: TarWriter, key: str, members: Members) -> None:
    """Adds a sample's members, sorted by suffix."""
    for suffix in sorted(members):
        if split_name(f"{key}.{suffix}") != (key, suffix):
            fix = "leave dots out of the key's last part, and write suffixes in lower case"
            raise UserError(
                f"sample {key!r}", f"member {key}.{suffix}", "a name that reads back as key and suffix", fix
            )
        tar.add(f"{key}.{suffix}", members[suffix])


class ShardWriter:
    """Writes samples into ``folder/000000.tar`` and on; use it in a ``with`` block.

    The shards lie in a hidden folder beside until the block ends well; then they are indexed (which reads every byte
    back) and the folder takes its place. If anything is raised, nothing remains.

    Args:
        max_samples: samples to a shard.
        max_bytes: a shard that has reached this size is closed.
    """

    def __init__(self, folder: str | Path, *, max_samples: int, max_bytes: int = 1 << 30) -> None:
        if max_samples < 1:
            raise UserError("shard size", f"{max_samples} samples", "at least 1", "give a larger shard size")
        self.folder, self.max_samples, self.max_bytes = Path(folder).absolute(), max_samples, max_bytes
        refuse_existing(self.folder)
        self.staging = self.folder.with_name(f".{self.folder.name}.staging-{os.getpid()}")
        self.count, self._shards, self._in_shard = 0, 0, 0
        self._tar: TarWriter | None = None
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        return self

    def write(self, key: str, members: Members) -> None:
        """Adds one sample. Raises UserError for a key that was written before or cannot be read back."""
        if key in self._keys:
            raise UserError(f"sample {key!r}", "the key came twice", "one sample to a key", "rename one of them")
        if self._tar and (self._in_shard >= self.max_samples or self._tar.bytes_written >= self.max_bytes):
            self._close()
        if self._tar is None:
            self._tar = TarWriter(self.staging / f"{self._shards:06d}.tar")
        write_members(self._tar, key, members)
        self._keys.add(key)
        self._in_shard, self.count = self._in_shard + 1, self.count + 1

    def _close(self) -> None:
        if self._tar:
            self._tar.close()
            self._tar, self._in_shard, self._shards = None, 0, self._shards + 1

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._close()
                Index.of(self.staging)
                refuse_existing(self.folder)
                os.replace(self.staging, self.folder)
        finally:
            if self._tar:
                self._tar.abandon()
            shutil.rmtree(self.staging, ignore_errors=True)


def encode_webp(frames: np.ndarray, fps: float) -> bytes:
    """uint8 ``[t h w c]`` → a lossless animated WebP.

    The format merges equal neighbouring frames, so how many there were must be told beside it (``num_frames`` in the
    sample's json); `decode.py` spreads them again.
    """
    first, *rest = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    options = {"lossless": True, "quality": 20, "method": 2, "minimize_size": False}  # 4 ms for 16 frames of 64 x 64
    first.save(out, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), **options)
    return out.getvalue()


def write_world(
    folder: str | Path,
    *,
    split: str,
    count: int,
    seed: int,
    captions_each: int = 3,
    two_objects: float = 0.3,
    pace: float = 1.0,
    motions: Mapping[str, float] | None = None,
    shard_size: int = 500,
    branded: bool = False,
    stills: bool = False,
    broken_share: float | None = None,
    rename: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes ``count`` clips of the procedural world with captions (.txt) and facts (.json); returns the folder.

    Args:
        split: ``train``, ``heldout`` (combinations that training never holds) or ``clutter`` (crowded single frames
            without captions, for codecs).
        pace: how far moving objects go, 1 is 20 pixels; see `world.scene`.
        motions: shares of some motions among all objects; the others share the rest evenly.
        branded: whether in the style of the brand kit (`brand.py`), captions with its token.
        stills: whether only the first frame of each clip is drawn.
        broken_share: of clips that are broken (`broken.py`), whose captions say that alone; None: the world as it is.
        rename: other names in captions, by the world's own words; what the facts say stays.
        progress: called with (written, count) after each sample.

    Raises:
        UserError: for an unknown split, clutter of the brand, renamed, at a pace or with motions, broken clips that are
            something else besides, a count below 1, a pace that cannot be judged, shares of motions that make no whole,
            or an output that exists.
    """
    if split not in ("train", "heldout", "clutter"):
        raise UserError("split", repr(split), "train, heldout or clutter", "write one of the three")
    if count < 1:
        raise UserError("count", str(count), "at least one sample", "give a larger count")
    world.readable(pace, two_objects)
    world.shares_of_motions(motions or {})
    if branded and split == "clutter":
        raise UserError("brand", "clutter", "scenes: train or heldout", "leave out one of the two")
    if pace != 1 and split == "clutter":
        raise UserError("pace", "clutter, where nothing moves", "scenes: train or heldout", "leave out one of the two")
    if motions and split == "clutter":
        raise UserError(
            "motions", "clutter, where nothing moves", "scenes: train or heldout", "leave out one of the two"
        )
    if rename and split == "clutter":
        raise UserError("rename", "clutter", "scenes, which have captions", "leave out one of the two")
    if broken_share is not None and (branded or stills or rename or split == "clutter"):
        raise UserError("broken", "clips of another kind too", "plain scenes: train or heldout", "leave out the others")
    drawn = brand.samples if branded else world.samples
    num_frames = 1 if stills else world.NUM_FRAMES
    if broken_share is None:
        scenes = drawn(seed, split, count, captions_each, two_objects, num_frames, pace, motions)
    else:
        scenes = broken.samples(seed, split, count, two_objects, pace, broken_share, motions)
    with ShardWriter(folder, max_samples=shard_size) as writer:
        for key, frames, captions, truth in scenes:
            facts = {"fps": WORLD_FPS, "num_frames": len(frames), "truth": truth}
            text = json.dumps(facts, sort_keys=True).encode()
            words = "".join(f"{line}\n" for line in world.renamed(captions, rename or {})).encode()
            writer.write(key, {"webp": encode_webp(frames, WORLD_FPS), "txt": words, "json": text})
            if progress:
                progress(writer.count, count)
    return Path(folder)
