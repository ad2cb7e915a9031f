"""One tar, scanned: its members grouped into samples and measured. How members lie in a tar is `tar.py`."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtrain.data.facts import FACTS, measure
from mmtrain.data.tar import Member, scan
from mmtrain.data.workers import Tick
from mmtrain.errors import UserError

_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)


def split_name(name: str) -> tuple[str, str] | None:
    """``a/b.seg.png`` → (``a/b``, ``seg.png``), as webdataset splits; None for a file that belongs to no sample."""
    found = _NAME.match(name)
    return (found[1], found[2].lower()) if found else None


@dataclass(frozen=True)
class Shard:
    """One tar: its identity, its keys, and its members in flat arrays (sample j owns ``starts[j]:starts[j + 1]``)."""

    path: Path
    size: int  # bytes
    mtime_ns: int
    sha256: str
    ignored: int  # files that belong to no sample
    keys: list[str]
    vocabulary: tuple[str, ...]  # what suffixes there are
    starts: np.ndarray  # int64 [samples + 1]
    offsets: np.ndarray  # int64 [members], bytes
    sizes: np.ndarray  # int64 [members], bytes
    crcs: np.ndarray  # uint32 [members]
    suffixes: np.ndarray  # uint16 [members], places in the vocabulary
    facts: np.ndarray  # FACTS [samples]
    keyframe_starts: np.ndarray  # int64 [samples + 1]
    keyframes: np.ndarray  # uint32 [keyframes of all clips], frame numbers

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, j: int) -> dict[str, Member]:
        """Members of the shard's sample j by suffix."""
        found = {}
        for m in range(int(self.starts[j]), int(self.starts[j + 1])):
            suffix = self.vocabulary[self.suffixes[m]]
            name = f"{self.keys[j]}.{suffix}"
            found[suffix] = Member(name, int(self.offsets[m]), int(self.sizes[m]), int(self.crcs[m]))
        return found

    def weighed(self, weights: Mapping[str, int]) -> np.ndarray:
        """int64 ``[samples]``: the sum of the weights of a sample's suffixes."""
        table = np.array([weights.get(suffix, 0) for suffix in self.vocabulary], np.int64)
        found: np.ndarray = np.add.reduceat(table[self.suffixes], self.starts[:-1])
        return found


def read_shard(path: Path, tick: Tick = lambda count: None) -> Shard:
    """Scans one tar, groups its members into samples and measures them; ``tick`` is told of bytes.

    Raises:
        UserError: naming shard, member and fault.
    """
    stat = path.stat()
    samples = _Samples(path, tick)
    sha256 = scan(path, samples.add)
    samples.finish()
    if not samples.keys:
        raise UserError(f"shard {path}", "holds no samples", "at least one", "write it again, or remove it")
    kept = samples.kept
    return Shard(
        path,
        stat.st_size,
        stat.st_mtime_ns,
        sha256,
        ignored=samples.ignored,
        keys=samples.keys,
        vocabulary=tuple(samples.vocabulary),
        starts=np.array([*samples.starts, len(kept)], np.int64),
        offsets=np.array([m.offset for m in kept], np.int64),
        sizes=np.array([m.size for m in kept], np.int64),
        crcs=np.array([m.crc32 for m in kept], np.uint32),
        suffixes=np.array(samples.suffixes, np.uint16),
        facts=np.array(samples.facts, FACTS),
        keyframe_starts=np.cumsum([0, *(len(k) for k in samples.keyframes)]).astype(np.int64),
        keyframes=np.array(list(itertools.chain(*samples.keyframes)), np.uint32),
    )


class _Samples:
    """Members in, samples out: a sample is measured when the first member of the next one comes."""

    def __init__(self, path: Path, tick: Tick) -> None:
        self.path, self.tick, self.ignored = path, tick, 0
        self.keys: list[str] = []
        self.starts: list[int] = []
        self.kept: list[Member] = []
        self.suffixes: list[int] = []
        self.vocabulary: dict[str, int] = {}
        self.facts: list[tuple[float, ...]] = []
        self.keyframes: list[list[int]] = []
        self._seen: set[str] = set()
        self._contents: dict[str, bytes] = {}  # of the sample that is not finished

    def add(self, member: Member, payload: bytes) -> None:
        self.tick(member.size)
        if (name := split_name(member.name)) is None or "\n" in member.name:
            self.ignored += 1
            return
        key, suffix = name
        if not self.keys or key != self.keys[-1]:
            if key in self._seen:
                raise _duplicate(self.path, member.name, "its key came before, with other samples between")
            self.finish()
            self._seen.add(key)
            self.keys.append(key)
            self.starts.append(len(self.kept))
        elif suffix in self._contents:
            raise _duplicate(self.path, member.name, "it came twice for one key")
        self._contents[suffix] = payload
        self.kept.append(member)
        self.suffixes.append(self.vocabulary.setdefault(suffix, len(self.vocabulary)))

    def finish(self) -> None:
        if self._contents:
            facts, keyframes = measure(self._contents)
            self.facts.append(facts)
            self.keyframes.append(keyframes)
            self._contents = {}


def _duplicate(path: Path, name: str, what: str) -> UserError:
    fix = "give each sample its own key and pack again, with a key's members side by side"
    return UserError(f"shard {path}, member {name!r}", what, "each sample once, its members side by side", fix)
