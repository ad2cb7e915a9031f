"""`Source`: shards to batches, in an order that is a pure function of (seed, epoch, index).

Position p counts samples over all epochs; batch b is the positions [bG, (b + 1)G), and rank r takes its slice. So any
number of workers or ranks gives the same batches, and to go on after a stop takes one integer: the batches consumed.
The bytes' whereabouts are `index.py`, the order is `order.py`, pixels are `decode.py`.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mmtrain.batch import Batch, Sample, to_unit
from mmtrain.data.decode import BadSample, Look, captions_of, decode, decode_encoded
from mmtrain.data.index import Index
from mmtrain.data.order import Order
from mmtrain.errors import UserError
from mmtrain.rng import key

WORKER_TIMEOUT = 120.0  # seconds in which a worker must deliver, or the run stops


class Source:
    """Samples in tar shards.

    Args:
        shards: a folder of tars, one tar, or a pattern (``data/{000000..000011}.tar``).
        num_frames: frames to take of each clip, or None for all; a still image has one.
        stride: every how many frames of a clip one is taken.
        size: side in pixels of the square middle of each frame, or None to keep frames as they are.
        window: shards whose samples are mixed with each other in an epoch.
        max_bad_fraction: share of all samples that may fail to decode; each is replaced by its neighbour in the shard
            and counted in ``bad``. One more stops the run.
        require_captions: refuse samples without a .txt.

    Raises:
        UserError: naming shard and member, for whatever is wrong with the shards' structure.
    """

    def __init__(
        self,
        *,
        shards: str,
        num_frames: int | None = None,
        stride: int = 1,
        size: int | None = None,
        window: int = 8,
        max_bad_fraction: float = 0.0,
        require_captions: bool = True,
    ) -> None:
        for name, value in (("num_frames", num_frames), ("stride", stride), ("size", size), ("window", window)):
            if value is not None and value < 1:
                raise UserError(f"data source, {name}", str(value), "at least 1", "give a positive number")
        self.shards, self.look, self.window = shards, Look(num_frames, stride, size), window
        self.max_bad_fraction, self.require_captions = max_bad_fraction, require_captions
        self.index = Index.of(shards)
        self.kind = self.index.media(require_captions=require_captions)  # frames or encoded
        self.bad: dict[str, str] = {}  # key of each sample that was replaced → why

    def __len__(self) -> int:
        return len(self.index)

    @property
    def keys(self) -> list[str]:
        return self.index.keys

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' contents."""
        return self.index.fingerprint

    def raw(self, i: int) -> dict[str, bytes]:
        """Sample i's members by suffix, checked against their checksums. Raises UserError."""
        with self._named(i):
            return read_members(self.index, i)

    def sample(self, i: int, draw: float = 0.5) -> Sample:
        """Sample i decoded; ``draw`` in [0, 1) chooses the window of frames (the middle one, if not told).

        Raises:
            UserError: if it does not decode, or the shards hold encoder outputs.
        """
        if self.kind == "encoded":
            raise UserError(
                f"data source {self.shards}", "encoder outputs", "pixels", "read them with source.encoded(i)"
            )
        with self._named(i):
            return decode(self.keys[i], read_members(self.index, i), self.look, draw)

    def encoded(self, i: int) -> dict[str, Tensor]:
        """Sample i's cached encoder outputs as stored, without batch axis. Raises UserError."""
        if self.kind != "encoded":
            raise UserError(
                f"data source {self.shards}", "pixels", "encoder outputs", "read them with source.sample(i)"
            )
        with self._named(i):
            return decode_encoded(read_members(self.index, i))

    @contextmanager
    def _named(self, i: int) -> Iterator[None]:
        try:
            yield
        except BadSample as why:
            path = self.index.shards[self.index.locate(i)[0]].path
            fix = "mend or remove it and pack again"
            raise UserError(f"shard {path}, sample {self.keys[i]!r}", str(why), "a sample that decodes", fix) from why

    def loader(
        self,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        consumed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> DataLoader:
        """A loader of `Batch` whose length is the whole plan and whose iteration starts after what was consumed.

        Args:
            batch_size: samples of one batch over all ranks together; each rank yields its share.
            steps: batches of the whole plan.
            consumed: batches that training has used already.

        Raises:
            UserError: if the ranks cannot share a batch evenly; while iterating, if too many samples do not decode.
        """
        if batch_size < 1 or batch_size % world_size:
            fix = "choose a multiple of the number of ranks"
            raise UserError("batch_size", str(batch_size), f"a batch that {world_size} rank(s) share evenly", fix)
        order = Order(lengths=self.index.lengths, window=self.window, seed=seed)
        return _Loader(
            _Batches(self, seed),
            batch_size=None,  # the sampler names whole batches, so collating stays ours
            sampler=_Plan(order, batch_size, steps, consumed, rank, world_size),
            num_workers=num_workers,
            timeout=WORKER_TIMEOUT if num_workers else 0,
        )

    def note(self, bad: dict[str, str]) -> None:
        """Counts samples that did not decode. Raises UserError once they are more than the stated share."""
        self.bad |= bad
        if len(self.bad) > self.max_bad_fraction * len(self):
            named = "; ".join(f"{k!r}: {why}" for k, why in list(self.bad.items())[:5])
            came = f"{len(self.bad)} of {len(self)} samples do not decode ({named})"
            fix = "mend or remove them and pack again, or raise max_bad_fraction"
            raise UserError(f"data source {self.shards}", came, f"at most a share of {self.max_bad_fraction:g}", fix)


def read_members(index: Index, i: int) -> dict[str, bytes]:
    """Sample i's members by suffix. Raises BadSample if a checksum differs, UserError if the shard cannot be read."""
    shard, _ = index.locate(i)
    path = index.shards[shard].path
    members = {}
    for suffix, member in index.members(i).items():
        payload = _read(path, member.offset, member.size)
        if zlib.crc32(payload) != member.crc32:
            raise BadSample(f"the .{suffix} changed since it was indexed (crc32)")
        members[suffix] = payload
    return members


def _read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a shard; the file is opened anew, so that nothing is shared between processes."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            payload = os.pread(file, size, offset)
        finally:
            os.close(file)
    except OSError as why:
        fix = "check the disk and the path, then start the run again; it goes on where it stopped"
        raise UserError(f"shard {path}", f"cannot be read ({why.strerror})", "a readable file", fix) from why
    if len(payload) < size:
        came = f"only {len(payload)} of {size} bytes at byte {offset}"
        raise UserError(f"shard {path}", came, "the file as it was indexed", "restore the shard")
    return payload


@dataclass
class _Parcel:
    """What a worker hands over: a batch, the samples that failed, and a fault as the four parts of a UserError (an
    exception raised in a worker would reach the user as a wall of text)."""

    batch: Batch | None = None
    bad: dict[str, str] = field(default_factory=dict)
    fault: tuple[str, str, str, str] | None = None


class _Plan(Sampler[list[tuple[int, int]]]):
    """Batch after batch, the (position, sample) pairs of one rank."""

    def __init__(self, order: Order, batch_size: int, steps: int, consumed: int, rank: int, world_size: int) -> None:
        self.order, self.batch_size, self.steps, self.consumed = order, batch_size, steps, consumed
        self.share = batch_size // world_size
        self.rank = rank

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.consumed, self.steps):
            first = batch * self.batch_size + self.rank * self.share
            yield [(p, self.order[p]) for p in range(first, first + self.share)]


class _Batches(Dataset[_Parcel]):
    """Map-style: the pairs of a batch → the batch."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, pairs: list[tuple[int, int]]) -> _Parcel:
        parcel = _Parcel()
        try:
            rows = [self._row(position, i, parcel.bad) for position, i in pairs]
            parcel.batch = _stack(rows, [position for position, _ in pairs])
        except UserError as why:
            parcel.fault = (why.where, why.came, why.wanted, why.fix)
        return parcel

    def _row(self, position: int, i: int, bad: dict[str, str]) -> "_Row":
        """The sample, or the next of its shard that decodes: the same one on every run."""
        shard, place = self.source.index.locate(i)
        count = self.source.index.lengths[shard]
        for step in range(count):
            candidate = i - place + (place + step) % count
            try:
                return _row(self.source, candidate, self.seed, position)
            except BadSample as why:
                bad[self.source.keys[candidate]] = str(why)
        path = self.source.index.shards[shard].path
        raise UserError(f"shard {path}", "none of its samples decodes", "at least one", "write the shard again")


@dataclass
class _Row:
    key: str
    caption: str
    frames: Tensor | None
    encoded: dict[str, Tensor]


def _row(source: Source, i: int, seed: int, position: int) -> _Row:
    """One row of a batch; what is chosen at random is keyed by (seed, position)."""
    name, members = source.keys[i], read_members(source.index, i)
    if source.kind == "encoded":
        frames, encoded = (
            None,
            {n: t.float() if t.is_floating_point() else t for n, t in decode_encoded(members).items()},
        )
        captions = captions_of(members)
    else:
        sample = decode(name, members, source.look, (key(seed, "clip", position) >> 10) / 2**53)
        frames, encoded, captions = to_unit(sample.frames.copy()), {}, sample.captions
    if not captions and source.require_captions:
        raise BadSample("the .txt holds no caption")
    caption = captions[key(seed, "caption", position) % len(captions)] if captions else ""
    return _Row(name, caption, frames, encoded)


def _stack(rows: list[_Row], positions: list[int]) -> Batch:
    """Rows → Batch; frames float32 ``[b t c h w]`` in [-1, 1], encoder outputs as float32 with first axis b."""
    keys, captions = [r.key for r in rows], [r.caption for r in rows]
    clips = [r.frames for r in rows if r.frames is not None]
    _same_shape(keys, {"frames": clips} if clips else {n: [r.encoded.get(n) for r in rows] for n in rows[0].encoded})
    if clips:
        return Batch(keys, positions, captions, torch.stack(clips))
    return Batch(
        keys, positions, captions, None, {n: torch.stack([r.encoded[n] for r in rows]) for n in rows[0].encoded}
    )


def _same_shape(keys: list[str], columns: dict[str, Any]) -> None:
    for name, column in columns.items():
        shapes = [None if t is None else tuple(t.shape) for t in column]
        for other, shape in zip(keys, shapes, strict=True):
            if shape != shapes[0]:
                came = f"{name} of {other!r} is {shape}, of {keys[0]!r} {shapes[0]}"
                raise UserError("batch", came, "equal shapes in a batch", "set num_frames and size of the data source")


class _Loader(DataLoader[_Parcel]):
    """A DataLoader that opens the parcels where they are consumed: faults are raised and bad samples counted here, in
    the training process, in the order of the batches."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        source: Source = self.dataset.source  # type: ignore[attr-defined]
        for parcel in super().__iter__():
            if parcel.bad:
                source.note(parcel.bad)
            if parcel.fault:
                raise UserError(*parcel.fault)
            yield parcel.batch
