"""Encoder outputs as shards: what is frozen is computed once, and training reads it in the place of pixels.

The cache mirrors its source shard for shard and sample for sample, so that order, captions and keys stay the same. What
an encoder is, this file does not know: it is handed a function.
"""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mmtrain.batch import to_unit
from mmtrain.data.claim import Claim
from mmtrain.data.decode import BadSample, decode
from mmtrain.data.facts import encoding_of
from mmtrain.data.index import Index
from mmtrain.data.mask import MASK, mask_of, png
from mmtrain.data.source import Source, read_members
from mmtrain.data.tar import TarWriter
from mmtrain.errors import UserError

IDENTITY = "cache.json"
VERSION = 3

POLL_SECONDS = 0.2

Encode = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A sample to be encoded."""

    key: str
    frames: Tensor  # float32 [t c h w] in [-1, 1]
    fps: float
    carried: dict[str, bytes]  # members that the cache's sample has, too


def identity(source: Source, encoder_id: str, dtype: torch.dtype) -> dict[str, object]:
    """What must be equal for a cache to be used again."""
    look = source.look
    masks = {"masks": True} if any(MASK in shard.vocabulary for shard in source.index.shards) else {}
    return {
        "version": VERSION,
        "content": source.fingerprint,
        "encoder_id": encoder_id,
        "num_frames": look.num_frames,
        "stride": look.stride,
        "size": None if look.size is None else list(look.size),
        "fps": look.fps,
        "buckets": None if source.buckets is None else source.buckets.config,
        "dtype": str(dtype).removeprefix("torch."),
        **masks,
    }


def place(root: str | Path, source: Source, encoder_id: str, dtype: torch.dtype = torch.float16) -> Path:
    """The folder below ``root`` for the cache of this source and encoder: one per identity, so that none is refused."""
    return Path(root) / f"{source.fingerprint[:8]}-{_digest(identity(source, encoder_id, dtype))}"


def _digest(identity: dict[str, object]) -> str:
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=6).hexdigest()


def encode_shards(
    source: Source,
    folder: str | Path,
    *,
    encode: Encode,
    encoder_id: str,
    batch_size: int,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes ``encode``'s outputs for every sample as ``key.safetensors``, with captions and facts carried over.

    A finished cache of the same identity is returned as it is; an interrupted one goes on after its whole shards. Any
    number of processes, on any number of machines that share the folder, may do this at once: each takes the shards
    that no other has, those of one that died among them, and returns when all are written. A longer clip gives its
    middle window. Samples that do not decode are counted in ``source.bad`` and left out, up to the source's
    ``max_bad_fraction``.

    Args:
        encode: frames float32 ``[b t c h w]`` in [-1, 1] → tensors by name, first axis b.
        encoder_id: hash of the encoder's weights and preprocessing.
        dtype: what floating-point outputs are stored as.
        progress: called with (samples done, samples) after each batch.

    Raises:
        UserError: naming the field, if the folder holds a cache of another identity, or something else.
    """
    folder = Path(folder).absolute()
    if source.kind == "encoded":
        raise UserError(
            f"data source {source.shards}", "encoder outputs", "pixels to encode", "point at the pixels' shards"
        )
    wanted = identity(source, encoder_id, dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = _Work(source, folder, wanted, encode, batch_size, dtype, progress)
    while not work.finished():
        if not work.step():
            time.sleep(POLL_SECONDS)  # others are at work on all that is left
    return folder


def check_identity(folder: Path, wanted: dict[str, object]) -> None:
    """Raises UserError naming each field in which the cache in ``folder`` differs from what is wanted."""
    try:
        found = json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError):
        fix = "choose a new or empty folder for the cache"
        raise UserError(f"cache {folder}", "the folder holds something else", f"a cache ({IDENTITY})", fix) from None
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        came = ", ".join(f"{name} is {found.get(name)!r}" for name in differing)
        right = ", ".join(f"{name} {wanted[name]!r}" for name in differing)
        fix = "choose another folder, or remove this cache to have it written again"
        raise UserError(f"cache {folder}", came, right, fix)


@dataclass(frozen=True)
class _Work:
    """What there is to do for one cache, by this process and others. Each shard, and the folder as a whole, is written
    by who holds the `Claim` on it; what is whole has its name."""

    source: Source
    folder: Path
    wanted: dict[str, object]
    encode: Encode
    batch_size: int
    dtype: torch.dtype
    progress: Callable[[int, int], None] | None

    @property
    def staging(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.partial-{_digest(self.wanted)}")

    def finished(self) -> bool:
        """Whether the folder holds the cache. Raises UserError if it holds anything else."""
        if self.folder.exists() and any(self.folder.iterdir()):
            check_identity(self.folder, self.wanted)
            return True
        return False

    def shards(self) -> Iterator[tuple[Path, range]]:
        """Where each shard of the cache goes, and which samples it holds."""
        for number, edges in enumerate(itertools.pairwise(self.source.index.starts.tolist())):
            yield self.staging / f"{number:06d}.tar", range(*edges)

    def step(self) -> bool:
        """Does what is there to be done and free; whether there was anything."""
        if not self.staging.exists():
            return self.begin()
        unwritten = [(place, samples) for place, samples in self.shards() if not place.exists()]
        if not unwritten:
            return self.finish()
        before = done = len(self.source) - sum(len(samples) for _, samples in unwritten)
        for place, samples in unwritten:
            done += len(samples) if self.shard(place, samples, done) else 0
        return done > before

    def begin(self) -> bool:
        """Half a cache of another identity is worth nothing; where nobody is at work on it, it goes."""
        with Claim(self.folder).attempt() as free:
            if free and not self.finished():
                for other in self.folder.parent.glob(f".{self.folder.name}.partial-*"):
                    if not any(_is_held(lock) for lock in other.glob(".*.lock")):
                        shutil.rmtree(other)
                self.staging.mkdir()
            return free

    def shard(self, place: Path, samples: range, before: int) -> bool:
        with Claim(place).attempt() as free:
            if free and not place.exists() and place.parent.exists():  # none: all were finished meanwhile
                self.write(place, samples, before)
            return free

    def write(self, place: Path, samples: range, before: int) -> None:
        tar = TarWriter(place)
        try:
            for start in range(samples.start, samples.stop, self.batch_size):
                numbers = range(start, min(start + self.batch_size, samples.stop))
                if entries := [entry for i in numbers if (entry := _entry(self.source, i))]:
                    _write(tar, entries, self.encode, self.dtype)
                if self.progress:
                    self.progress(before + numbers.stop - samples.start, len(self.source))
            if not tar.bytes_written:
                where = f"cache shard {place.name}"
                raise UserError(where, "no sample of it decodes", "at least one", "mend the source shard")
            tar.close()
        except BaseException:
            tar.abandon()
            raise

    def finish(self) -> bool:
        """Indexes the shards and gives the folder its name; the first of all processes to come here does it."""
        with Claim(self.folder).attempt() as free:
            if free and not self.finished():
                for torn in [*self.staging.glob("*.staging"), *self.staging.glob(".*.lock")]:
                    torn.unlink(missing_ok=True)
                (self.staging / IDENTITY).write_text(json.dumps(self.wanted, indent=1) + "\n")
                Index.of(self.staging)
                if self.folder.exists():
                    self.folder.rmdir()
                os.replace(self.staging, self.folder)
            return free


def _is_held(lock: Path) -> bool:
    with Claim(lock.with_name(lock.name[1:].removesuffix(".lock"))).attempt() as free:
        return not free


def _entry(source: Source, i: int) -> Entry | None:
    try:
        members = read_members(source.index, i)
        sample, mask = decode(source.keys[i], members, source.look_at(i)), mask_of(members, source.look_at(i))
    except BadSample as why:
        source.note({i: why})
        return None
    carried = {suffix: data for suffix, data in members.items() if suffix in ("txt", "json")}
    carried |= {} if mask is None else {MASK: png(mask)}
    return Entry(sample.key, to_unit(sample.frames.copy()), sample.fps, carried)


def _write(tar: TarWriter, entries: list[Entry], encode: Encode, dtype: torch.dtype) -> None:
    alike: dict[tuple[int, ...], list[Entry]] = {}
    for entry in entries:
        alike.setdefault(tuple(entry.frames.shape), []).append(entry)
    found: dict[str, dict[str, Tensor]] = {}
    for group in alike.values():
        with torch.no_grad():
            outputs = encode(torch.stack([entry.frames for entry in group]))
        for row, entry in enumerate(group):
            found[entry.key] = {name: _stored(entry.key, name, t[row], dtype) for name, t in outputs.items()}
    for entry in entries:
        told = encoding_of(tuple(entry.frames.shape), entry.fps)
        members = {**entry.carried, "safetensors": safetensors.torch.save(found[entry.key], told)}
        for suffix in sorted(members):
            tar.add(f"{entry.key}.{suffix}", members[suffix])


def _stored(key: str, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU, with memory of its own. Raises UserError for what is not finite."""
    kept = tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
    if kept.is_floating_point() and not bool(torch.isfinite(kept).all()):
        fix = f"mend the encoder or the sample, or store more range than {dtype}"
        raise UserError(f"encoding {name!r} of sample {key!r}", "not finite", "numbers that training can use", fix)
    return kept
