"""What lies in the shards: for each sample its key, where its members' bytes are, with checksums, and their `FACTS`.

One pass reads every byte once; the result is kept beside the shards (``index.npz``, flat columns, so that a million
samples open in well under a second) and used again while they are unchanged. Holds no pixels and no order: decoding
is `decode.py`, order is `order.py`, both meet in `source.py`.
"""

import hashlib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.facts import ENCODED as ENCODED
from mmtrain.data.facts import FACTS
from mmtrain.data.facts import IMAGES as IMAGES
from mmtrain.data.facts import MEDIA as MEDIA
from mmtrain.data.facts import VIDEOS as VIDEOS
from mmtrain.data.scan import Shard, read_shard
from mmtrain.data.tar import Member
from mmtrain.data.workers import Tick, spread
from mmtrain.errors import UserError, UserErrors

SIDECAR = "index.npz"
_CAPTION = 1 << 16  # what a caption weighs where a medium weighs 1
VERSION = 2

_BY_SAMPLE = ("starts", "keyframe_starts")  # columns of a shard with an entry for each sample and one more
_BY_MEMBER = ("offsets", "sizes", "crcs", "suffixes")
_OTHER = ("facts", "keyframes")


class Index:
    """The samples of a list of shards, numbered 0 to n - 1 in shard order."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.lengths = [len(s) for s in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @classmethod
    def of(cls, where: str | Path, **how: Any) -> "Index":
        """As `read`, for those who need every shard: its faults are raised, all at once (UserError)."""
        index, faults = cls.read(where, **how)
        if faults:
            raise faults[0] if len(faults) == 1 else UserErrors(faults)
        return index

    @classmethod
    def read(
        cls,
        where: str | Path,
        *,
        verify: bool = False,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple["Index", list[UserError]]:
        """Indexes a folder of tars, one tar, or a pattern (``*``, ``?``, ``{000000..000011}``, ``{a,b}``).

        Args:
            verify: read every shard again, also those whose size and time say that they are unchanged.
            workers: processes that read shards.
            progress: called with (bytes, bytes) of the shards that are read.

        Returns:
            The sound shards, and of each other one what would lose or change a sample silently: shard, member, fault.

        Raises:
            UserError: if no shard is there.
        """
        paths = find_shards(where)
        shards: dict[Path, Shard] = {}
        faults: list[UserError] = []
        for folder, group in itertools.groupby(paths, key=lambda p: p.parent):
            whole = Path(where) == folder or Path(where).absolute() == folder
            pending = _Folder(folder, list(group), whole=whole, verify=verify)
            shards |= pending.read(workers, progress)
            faults += pending.faults
        return cls([shards[p] for p in paths if p in shards]), faults

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, i: int) -> tuple[int, int]:
        """Sample number → (shard number, place in the shard)."""
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        return shard, i - int(self.starts[shard])

    def members(self, i: int) -> dict[str, Member]:
        shard, j = self.locate(i)
        return self.shards[shard].members(j)

    @cached_property
    def keys(self) -> list[str]:
        return [key for shard in self.shards for key in shard.keys]

    @cached_property
    def facts(self) -> np.ndarray:
        """`FACTS` ``[n]``: a column is ``index.facts["width"]``."""
        return np.concatenate([np.empty(0, FACTS), *(shard.facts for shard in self.shards)])

    def keyframes(self, i: int) -> np.ndarray:
        """uint32: the numbers of sample i's keyframes in the order of showing; none for what is not a video."""
        number, j = self.locate(i)
        shard = self.shards[number]
        found: np.ndarray = shard.keyframes[shard.keyframe_starts[j] : shard.keyframe_starts[j + 1]]
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the shards' contents in order: equal for a copy of the shards anywhere."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    def media(self, *, require_captions: bool) -> str:
        """``frames`` or ``encoded``: what the samples hold, after checking that each holds one medium and its caption.

        Raises:
            UserError: for a caption without its image or clip, an image without caption (where one is required), a
                sample with two media, or pixels and encoder outputs mixed.
        """
        kinds: set[str] = set()
        for shard in self.shards:
            counted = shard.weighed({"txt": _CAPTION, **dict.fromkeys(MEDIA, 1)})
            for j in np.flatnonzero((counted % _CAPTION != 1) | ((counted < _CAPTION) & require_captions)):
                raise _incomplete(shard, int(j))
            used = (shard.vocabulary[place] for place in np.flatnonzero(np.bincount(shard.suffixes)))
            kinds |= {"encoded" if s in ENCODED else "frames" for s in used if s in MEDIA}
        if len(kinds) > 1:
            where, fix = str(self.shards[0].path.parent), "keep them in separate folders"
            raise UserError(where, "pixels and encoder outputs are mixed", "one kind in one source", fix)
        return kinds.pop()


def _incomplete(shard: Shard, j: int) -> UserError:
    where = f"shard {shard.path}, sample {shard.keys[j]!r}"
    has = list(shard.members(j))
    media = [s for s in has if s in MEDIA]
    members = ", ".join(has)
    if len(media) > 1:
        fix = "keep one, or name the other as key.something.png"
        return UserError(where, f"holds {len(media)} media ({members})", "one image, clip or cached encoding", fix)
    if not media:
        came = "a caption without its image or clip" if "txt" in has else "no image or clip"
        fix = "add the missing file and pack again, or leave the sample out"
        return UserError(where, f"{came} (members: {members})", f"one of {', '.join(MEDIA)}", fix)
    fix = "add key.txt, or set require_captions=false where captions play no part"
    return UserError(where, f"no caption (members: {members})", "key.txt with one caption a line", fix)


def find_shards(where: str | Path) -> list[Path]:
    """The tars that a folder, path or pattern names, sorted within each pattern. Raises UserError if one is missing."""
    folder = Path(where).absolute()
    if folder.is_dir():
        if found := sorted(folder.glob("*.tar")):
            return found
        held = "the folder is empty" if not any(folder.iterdir()) else "the folder holds no .tar file"
        raise UserError(str(where), held, "shards (*.tar)", "pack shards into it, or point at another folder")
    found = []
    for name in expand(str(where)):
        if any(mark in name for mark in "*?["):
            full = Path(name).absolute()
            matched = sorted(
                p for p in Path(full.anchor).glob(str(full.relative_to(full.anchor))) if p.suffix == ".tar"
            )
        else:
            matched = [Path(name).absolute()] if Path(name).is_file() else []
        if not matched:
            fix = "check the path (relative ones start at the working folder), or write the shards first"
            raise UserError(name, "no shard is there", "an existing .tar file or a folder of them", fix)
        found += matched
    if len(set(found)) < len(found):
        raise UserError(str(where), "a shard is named twice", "each shard once", "make the pattern narrower")
    return found


def expand(pattern: str) -> list[str]:
    """The names that ``{000000..000011}`` and ``{a,b}`` stand for."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = numbers.groups()
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    return [p for choice in choices for p in expand(pattern[: found.start()] + choice + pattern[found.end() :])]


class _Folder:
    """Shards of one folder, from its sidecar where size and time still match, else read again and compared."""

    def __init__(self, folder: Path, paths: list[Path], *, whole: bool, verify: bool) -> None:
        self.folder, self.known = folder, load(folder, {path.name: path for path in paths})
        there = set(os.listdir(folder))  # noqa: PTH208  (names, not a thousand paths)
        self.gone = [name for name in self.known if name not in there]
        self.faults = [_gone(folder / name) for name in self.gone if whole]
        self.trusted: dict[Path, Shard] = {}
        self.unread: list[Path] = []
        for path in paths:
            before, stat = self.known.get(path.name), path.stat()
            if not verify and before and (before.size, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                self.trusted[path] = before
            else:
                self.unread.append(path)

    def read(self, workers: int, progress: Callable[[int, int], None] | None) -> dict[Path, Shard]:
        """The sound shards; the others are told in ``faults``, in the order of their names."""
        total, done, found = sum(p.stat().st_size for p in self.unread), 0, dict(self.trusted)

        def tick(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(min(done, total), total)

        results = dict(spread(_attempt, self.unread, workers=workers, tick=tick))
        for number, path in enumerate(self.unread):
            after, before = results[number], self.known.get(path.name)
            if isinstance(after, UserError):
                self.faults.append(after)
            elif before and before.sha256 != after.sha256:
                self.faults.append(_altered(before, after))
            else:
                found[path] = after
        if any(not _same(self.known.get(path.name), found[path]) for path in self.unread if path in found):
            kept = {n: s for n, s in self.known.items() if n not in self.gone}
            save(self.folder, {**kept, **{p.name: s for p, s in found.items()}})
        return found


def _attempt(path: Path, tick: Tick) -> Shard | UserError:
    try:
        return read_shard(path, tick)
    except UserError as why:
        return why


def _same(before: Shard | None, after: Shard) -> bool:
    return before is not None and (before.size, before.mtime_ns) == (after.size, after.mtime_ns)


def _gone(path: Path) -> UserError:
    fix = f"put it back, or delete {path.parent / SIDECAR} if it was removed on purpose"
    return UserError(f"shard {path}", "missing, though the index lists it", "every indexed shard", fix)


def _altered(before: Shard, after: Shard) -> UserError:
    crcs = [
        {f"{s.keys[j]}.{x}": m.crc32 for j in range(len(s)) for x, m in s.members(j).items()} for s in (before, after)
    ]
    names = [n for n in {**crcs[0], **crcs[1]} if crcs[0].get(n) != crcs[1].get(n)]
    none = "none, only headers" if list(crcs[0]) == list(crcs[1]) else "none, but they lie in another order"
    came = f"changed since it was indexed (sha256; members that differ: {', '.join(names[:3]) or none})"
    fix = f"restore the shard, or delete {after.path.parent / SIDECAR} if the change was meant"
    return UserError(f"shard {after.path}", came, f"sha256 {before.sha256[:12]}…, not {after.sha256[:12]}…", fix)


def save(folder: Path, shards: dict[str, Shard]) -> None:
    """Writes the sidecar in one rename; a folder that cannot be written to is indexed again each time."""
    rows = sorted(shards.values(), key=lambda s: s.path.name)
    vocabulary = sorted({suffix for s in rows for suffix in s.vocabulary})
    places = [np.array([vocabulary.index(suffix) for suffix in s.vocabulary], np.uint16) for s in rows]
    counts = [(len(s), len(s.offsets), len(s.keyframes)) for s in rows]
    head = {
        "version": VERSION,
        "suffixes": vocabulary,
        "shards": [
            [s.path.name, s.size, s.mtime_ns, s.sha256, s.ignored, *n] for s, n in zip(rows, counts, strict=True)
        ],
    }
    arrays = {name: np.concatenate([getattr(s, name) for s in rows]) for name in (*_BY_SAMPLE, *_BY_MEMBER, *_OTHER)}
    arrays["suffixes"] = np.concatenate([place[s.suffixes] for place, s in zip(places, rows, strict=True)])
    staging = folder / f".{SIDECAR}.{os.getpid()}"
    try:
        with open(staging, "wb") as file:
            np.savez(
                file,
                head=np.frombuffer(json.dumps(head).encode(), np.uint8),
                keys=np.frombuffer("\n".join(k for s in rows for k in s.keys).encode(), np.uint8),
                **arrays,  # type: ignore[arg-type]
            )
        os.replace(staging, folder / SIDECAR)
    except OSError:
        staging.unlink(missing_ok=True)


def load(folder: Path, paths: dict[str, Path]) -> dict[str, Shard]:
    """The sidecar's shards by file name; none if there is no sidecar that this version can read. ``paths`` are those
    of shards that are known already (to make a thousand takes longer than to read the rest)."""
    try:
        with np.load(folder / SIDECAR, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        head = json.loads(data["head"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return _unpack(folder, paths, head, data) if head.get("version") == VERSION else {}


def _unpack(
    folder: Path, paths: dict[str, Path], head: dict[str, Any], data: dict[str, np.ndarray]
) -> dict[str, Shard]:
    keys, vocabulary = data["keys"].tobytes().decode().split("\n"), tuple(head["suffixes"])
    found, sample, member, keyframe = {}, 0, 0, 0
    for row, (name, size, mtime_ns, sha256, ignored, samples, members, keyframes) in enumerate(head["shards"]):
        edges = slice(sample + row, sample + row + samples + 1)
        columns = {column: data[column][edges] for column in _BY_SAMPLE}
        columns |= {column: data[column][member : member + members] for column in _BY_MEMBER}
        columns["facts"] = data["facts"][sample : sample + samples]
        columns["keyframes"] = data["keyframes"][keyframe : keyframe + keyframes]
        part = keys[sample : sample + samples]
        path = paths.get(name) or folder / name
        found[name] = Shard(path, size, mtime_ns, sha256, ignored, part, vocabulary, **columns)
        sample, member, keyframe = sample + samples, member + members, keyframe + keyframes
    return found
