"""`Source`: samples in tar shards, by number: read with patience, decoded, replaced where they cannot be.

The bytes' whereabouts are `index.py`, the order is `order.py`, batches are `stream.py`, pixels are `decode.py`.
"""

import dataclasses
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmtrain.batch import Sample
from mmtrain.data.buckets import Buckets
from mmtrain.data.copies import Copies
from mmtrain.data.decode import MAX_FPS, BadSample, Look, captions_of, decode, decode_encoded
from mmtrain.data.index import Index
from mmtrain.data.mask import mask_of
from mmtrain.data.order import BucketedOrder, Order
from mmtrain.data.remote import is_remote
from mmtrain.data.stream import Row, Stream
from mmtrain.errors import UserError
from mmtrain.rng import key

WAITS = (0.1, 0.5, 2.0)  # seconds before each new attempt at bytes that could not be read


class Source(Stream):
    """Samples in tar shards.

    Args:
        shards: a folder of tars, one tar, or a pattern (``data/{000000..000011}.tar``); or a URL of one, as
            `remote.Job` takes it.
        num_frames: frames to take of each clip, or None for all; a still image has one.
        stride: every how many frames of a clip one is taken.
        fps: frames per second that clips are brought to before that, or None for their own.
        size: side in pixels of the square middle of each frame, or None to keep frames as they are.
        buckets: sizes and lengths to choose from for each sample, in the place of num_frames and size; the samples of a
            batch then are of one bucket. Encoder outputs take those that they were encoded with.
        window: shards whose samples are mixed with each other in an epoch.
        max_bad_fraction: share of all samples that may fail to decode; each is replaced by its neighbour in the shard
            and counted in ``bad``. One more stops the run.
        require_captions: refuse samples without a .txt.
        copies: where local copies of remote shards are kept.
        max_copies_gb: gigabytes (10⁹ bytes) that they may take, at least a window's; null for as many as there are.
        prefetch: windows of remote shards that are copied before they are needed.

    Raises:
        UserError: naming shard and member, for whatever is wrong with the shards' structure.
    """

    def __init__(
        self,
        *,
        shards: str,
        num_frames: int | None = None,
        stride: int = 1,
        fps: float | None = None,
        size: int | None = None,
        buckets: Buckets | None = None,
        window: int = 8,
        max_bad_fraction: float = 0.0,
        require_captions: bool = True,
        copies: str = "data/remote",
        max_copies_gb: float | None = None,
        prefetch: int = 1,
    ) -> None:
        for name, value in (("num_frames", num_frames), ("stride", stride), ("size", size), ("window", window)):
            if value is not None and value < 1:
                raise UserError(f"data source, {name}", str(value), "at least 1", "give a positive number")
        if prefetch < 0:
            raise UserError("data source, prefetch", str(prefetch), "0 or more", "give a number of windows")
        if fps is not None and not 0 < fps <= MAX_FPS:
            raise UserError("data source, fps", str(fps), f"a rate above 0, at most {MAX_FPS:g}", "give such a rate")
        if buckets is not None and (num_frames is not None or size is not None):
            came = f"buckets beside num_frames {num_frames} and size {size}"
            raise UserError("data source", came, "one or the other", "set num_frames and size to null")
        square = None if size is None else (size, size)
        self.shards, self.look, self.window, self.buckets = (
            shards,
            Look(num_frames, stride, square, fps),
            window,
            buckets,
        )
        self.max_bad_fraction, self.require_captions = max_bad_fraction, require_captions
        self.copies: Copies | None = None
        if is_remote(shards):
            limit = None if max_copies_gb is None else round(max_copies_gb * 1e9)
            self.copies = Copies(shards, Path(copies), limit=limit, window=window, prefetch=prefetch)
        self.index = self.copies.index if self.copies else Index.of(shards)
        self._kind = self.index.media(require_captions=require_captions)
        self._replaced: dict[int, BadSample] = {}
        self._bucket_of = np.zeros(len(self.index), np.int64)
        if buckets is not None:
            self._bucket_of = buckets.assign(self.index.facts, stride=stride, fps=fps)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def kind(self) -> str:
        return self._kind

    @cached_property
    def keys(self) -> list[str]:
        """A name for each sample and for no other: its key; where several shards have that key, with its shard's number
        before it, since a contrastive loss takes equal names for one picture."""
        counted = Counter(self.index.keys)
        if len(counted) == len(self):
            return self.index.keys
        numbers = np.repeat(np.arange(len(self.index.shards)), self.index.lengths).tolist()
        pairs = zip(numbers, self.index.keys, strict=True)
        return [key if counted[key] == 1 else f"{number}/{key}" for number, key in pairs]

    @property
    def replaced(self) -> dict[int, BadSample]:
        return self._replaced

    @property
    def bad(self) -> dict[str, str]:
        """Key of each sample that was replaced → why."""
        return {self.keys[i]: str(why) for i, why in self.replaced.items()}

    @property
    def bad_counts(self) -> dict[str, dict[str, int]]:
        counts: dict[str, Counter[str]] = {}
        for i, why in self.replaced.items():
            shard = self._shard(i)
            counts.setdefault(shard, Counter())[why.kind] += 1
        return {shard: dict(kinds) for shard, kinds in sorted(counts.items())}

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def _shard(self, i: int) -> str:
        return self.index.shards[self.index.locate(i)[0]].path.name

    def raw(self, i: int) -> dict[str, bytes]:
        """Sample i's members by suffix, checked against their checksums. Raises UserError."""
        with self._named(i):
            return self._members(i)

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
            return decode(self.keys[i], self._members(i), self.look_at(i), draw)

    def look_at(self, i: int) -> Look:
        """What is kept of sample i's frames."""
        if self.buckets is None:
            return self.look
        size, num_frames = self.buckets.shape(int(self._bucket_of[i]))
        return dataclasses.replace(self.look, size=size, num_frames=num_frames)

    def encoded(self, i: int) -> dict[str, Tensor]:
        """Sample i's cached encoder outputs as stored, without batch axis. Raises UserError."""
        if self.kind != "encoded":
            raise UserError(
                f"data source {self.shards}", "pixels", "encoder outputs", "read them with source.sample(i)"
            )
        with self._named(i):
            return decode_encoded(self._members(i))

    def _members(self, i: int) -> dict[str, bytes]:
        with self.copies.held(self.index.locate(i)[0]) if self.copies else nullcontext():
            return read_members(self.index, i)

    @property
    def horizon(self) -> int:
        return self.copies.horizon if self.copies else 0

    def expect(self, samples: np.ndarray) -> None:
        if self.copies:
            self.copies.expect(samples)

    @contextmanager
    def _named(self, i: int) -> Iterator[None]:
        try:
            yield
        except BadSample as why:
            path = self.index.shards[self.index.locate(i)[0]].path
            fix = "mend or remove it and pack again"
            raise UserError(f"shard {path}, sample {self.keys[i]!r}", str(why), "a sample that decodes", fix) from why

    def order(self, seed: int, batch_size: int) -> Order | BucketedOrder:
        if self.buckets is None:
            return Order(lengths=self.index.lengths, window=self.window, seed=seed)
        return BucketedOrder(
            lengths=self.index.lengths,
            window=self.window,
            seed=seed,
            buckets=self._bucket_of,
            batch_size=batch_size,
        )

    def row(self, i: int, seed: int, position: int, bad: dict[int, BadSample]) -> Row:
        """The sample, or the next of its shard (or bucket) that decodes: the same one on every run."""
        for candidate in self._candidates(i):
            try:
                return self._row(candidate, seed, position)
            except BadSample as why:
                bad[candidate] = why
        path = self.index.shards[self.index.locate(i)[0]].path
        which = "samples" if self.buckets is None else f"bucket {self.buckets.name(int(self._bucket_of[i]))}"
        raise UserError(f"shard {path}", f"none of its {which} decodes", "at least one", "write the shard again")

    def _candidates(self, i: int) -> Iterator[int]:
        """Sample i, then those that may stand for it, from the next one on, round the end."""
        yield i
        if self.buckets is None:
            shard, place = self.index.locate(i)
            count = self.index.lengths[shard]
            yield from (i - place + (place + step) % count for step in range(1, count))
        else:
            same = np.flatnonzero(self._bucket_of == self._bucket_of[i])
            yield from np.roll(same, -int(np.searchsorted(same, i)))[1:].tolist()

    def _row(self, i: int, seed: int, position: int) -> Row:
        """What is chosen at random is keyed by (seed, position)."""
        name, members = self.keys[i], self._members(i)
        if self.kind == "encoded":
            stored = decode_encoded(members)
            encoded = {n: t.float() if t.is_floating_point() else t for n, t in stored.items()}
            frames, captions, look = None, captions_of(members), Look()
        else:
            look = self.look_at(i)
            sample = decode(name, members, look, (key(seed, "clip", position) >> 10) / 2**53)
            frames, encoded = torch.from_numpy(sample.frames.copy()).permute(0, 3, 1, 2), {}
            captions = sample.captions
        if not captions and self.require_captions:
            raise BadSample("the .txt holds no caption", "no caption")
        caption = captions[key(seed, "caption", position) % len(captions)] if captions else ""
        mask = mask_of(members, look)
        return Row(name, caption, frames, encoded, None if mask is None else torch.from_numpy(mask.copy()) / 255)

    def note(self, bad: dict[int, BadSample]) -> None:
        self._replaced |= bad
        if len(self.replaced) > self.max_bad_fraction * len(self):
            first = list(self.replaced.items())[:5]
            named = "; ".join(f"{self.keys[i]!r} in {self._shard(i)}: {why}" for i, why in first)
            came = f"{len(self.replaced)} of {len(self)} samples do not decode ({named})"
            fix = "mend or remove them and pack again, or raise max_bad_fraction"
            raise UserError(f"data source {self.shards}", came, f"at most a share of {self.max_bad_fraction:g}", fix)


def read_members(index: Index, i: int) -> dict[str, bytes]:
    """Sample i's members by suffix. Raises BadSample if a checksum differs, UserError if the shard cannot be read."""
    shard, _ = index.locate(i)
    found = index.members(i)
    first = min(m.offset for m in found.values())
    last = max(m.offset + m.size for m in found.values())
    block = _read(index.shards[shard].path, first, last - first)  # a sample's members lie side by side
    members = {}
    for suffix, member in found.items():
        payload = block[member.offset - first : member.offset - first + member.size]
        if zlib.crc32(payload) != member.crc32:
            raise BadSample(f"the .{suffix} changed since it was indexed (crc32)", "changed")
        members[suffix] = payload
    return members


def _read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a shard; the file is opened anew, so that nothing is shared between processes. What may pass, such as a
    network drive that stalls, is tried again; a file that is gone or shorter is not."""
    for wait in (*WAITS, None):
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                payload = os.pread(file, size, offset)
            finally:
                os.close(file)
            break
        except OSError as why:
            if wait is None or isinstance(why, FileNotFoundError | PermissionError):
                came = f"cannot be read ({why.strerror or why}{'' if wait else f', {len(WAITS) + 1} times'})"
                fix = "check the disk and the path, then start the run again; it goes on where it stopped"
                raise UserError(f"shard {path}", came, "a readable file", fix) from why
            time.sleep(wait)
    if len(payload) < size:
        came = f"only {len(payload)} of {size} bytes at byte {offset}"
        raise UserError(f"shard {path}", came, "the file as it was indexed", "restore the shard")
    return payload
