"""What lies in the shards: for each sample its key and where its members' bytes are, with checksums.

One pass reads every byte once; the result is kept beside the shards (``index.npz``) and used again while they are
unchanged. Holds no pixels and no order: decoding is `decode.py`, order is `order.py`, both meet in `source.py`.
"""

import hashlib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.tar import Member, scan
from mmtrain.errors import UserError

SIDECAR = "index.npz"
VERSION = 1
IMAGES = ("jpg", "jpeg", "png", "webp")
VIDEOS = ("mp4", "webm")
ENCODED = ("safetensors",)
MEDIA = (*IMAGES, *VIDEOS, *ENCODED)

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
    starts: np.ndarray  # int64 [samples + 1]
    offsets: np.ndarray  # int64 [members], bytes
    sizes: np.ndarray  # int64 [members], bytes
    crcs: np.ndarray  # uint32 [members]
    suffixes: list[str]  # of each member

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, j: int) -> dict[str, Member]:
        """Members of the shard's sample j by suffix."""
        return {
            self.suffixes[m]: Member(
                f"{self.keys[j]}.{self.suffixes[m]}", int(self.offsets[m]), int(self.sizes[m]), int(self.crcs[m])
            )
            for m in range(int(self.starts[j]), int(self.starts[j + 1]))
        }


class Index:
    """The samples of a list of shards, numbered 0 to n - 1 in shard order."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.lengths = [len(s) for s in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @classmethod
    def of(cls, where: str | Path) -> "Index":
        """Indexes a folder of tars, one tar, or a pattern (``*``, ``?``, ``{000000..000011}``, ``{a,b}``).

        Raises:
            UserError: naming shard, member and fault, for anything that would lose or change a sample silently.
        """
        paths = find_shards(where)
        shards: dict[Path, Shard] = {}
        for folder, group in itertools.groupby(paths, key=lambda p: p.parent):
            shards |= _folder(folder, list(group), whole=Path(where) == folder or Path(where).absolute() == folder)
        return cls([shards[p] for p in paths])

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
    def fingerprint(self) -> str:
        """Hash of the shards' contents in order: equal for a copy of the shards anywhere."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    def media(self, *, require_captions: bool) -> str:
        """``frames`` or ``encoded``: what the samples hold, after checking that each holds one medium and its caption.

        Raises:
            UserError: for a caption without its image or clip, an image without caption (where one is required), a
                sample with two media, or pixels and encoder outputs mixed.
        """
        kinds = set()
        for shard in self.shards:
            media = np.array([s in MEDIA for s in shard.suffixes])
            captions = np.array([s == "txt" for s in shard.suffixes])
            found, told = (np.add.reduceat(column.astype(np.int64), shard.starts[:-1]) for column in (media, captions))
            for j in np.flatnonzero((found != 1) | ((told == 0) & require_captions)):
                raise _incomplete(shard, int(j))
            kinds |= {"encoded" if s in ENCODED else "frames" for s in set(shard.suffixes) if s in MEDIA}
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


def read_shard(path: Path) -> Shard:
    """Scans one tar and groups its members into samples. Raises UserError naming shard, member and fault."""
    stat = path.stat()
    members, sha256 = scan(path)
    keys: list[str] = []
    starts: list[int] = []
    kept: list[Member] = []
    suffixes: list[str] = []
    seen: set[str] = set()
    for member in members:
        if (name := split_name(member.name)) is None or "\n" in member.name:
            continue
        key, suffix = name
        if not keys or key != keys[-1]:
            if key in seen:
                raise _duplicate(path, member.name, "its key came before, with other samples between")
            seen.add(key)
            keys.append(key)
            starts.append(len(kept))
        elif suffix in suffixes[starts[-1] :]:
            raise _duplicate(path, member.name, "it came twice for one key")
        kept.append(member)
        suffixes.append(suffix)
    if not keys:
        raise UserError(f"shard {path}", "holds no samples", "at least one", "write it again, or remove it")
    return Shard(
        path,
        stat.st_size,
        stat.st_mtime_ns,
        sha256,
        ignored=len(members) - len(kept),
        keys=keys,
        starts=np.array([*starts, len(kept)], np.int64),
        offsets=np.array([m.offset for m in kept], np.int64),
        sizes=np.array([m.size for m in kept], np.int64),
        crcs=np.array([m.crc32 for m in kept], np.uint32),
        suffixes=suffixes,
    )


def _duplicate(path: Path, name: str, what: str) -> UserError:
    fix = "give each sample its own key and pack again, with a key's members side by side"
    return UserError(f"shard {path}, member {name!r}", what, "each sample once, its members side by side", fix)


def _folder(folder: Path, paths: list[Path], *, whole: bool) -> dict[Path, Shard]:
    """Shards of one folder, from its sidecar where size and time still match, else read again and compared."""
    known = _load(folder)
    gone = [name for name in known if not (folder / name).exists()]
    if whole and gone:
        fix = f"put it back, or delete {folder / SIDECAR} if it was removed on purpose"
        raise UserError(f"shard {folder / gone[0]}", "missing, though the index lists it", "every indexed shard", fix)
    shards, changed = {}, False
    for path in paths:
        before, stat = known.get(path.name), path.stat()
        if before and (before.size, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            shards[path] = before
            continue
        shards[path], changed = read_shard(path), True
        if before and before.sha256 != shards[path].sha256:
            raise _altered(before, shards[path])
    if changed:
        kept = {n: s for n, s in known.items() if n not in gone}
        _save(folder, {**kept, **{p.name: s for p, s in shards.items()}})
    return shards


def _altered(before: Shard, after: Shard) -> UserError:
    crcs = [
        {f"{s.keys[j]}.{x}": m.crc32 for j in range(len(s)) for x, m in s.members(j).items()} for s in (before, after)
    ]
    names = [n for n in {**crcs[0], **crcs[1]} if crcs[0].get(n) != crcs[1].get(n)]
    came = f"changed since it was indexed (sha256; members that differ: {', '.join(names[:3]) or 'none, only headers'})"
    fix = f"restore the shard, or delete {after.path.parent / SIDECAR} if the change was meant"
    return UserError(f"shard {after.path}", came, f"sha256 {before.sha256[:12]}…", fix)


def _save(folder: Path, shards: dict[str, Shard]) -> None:
    """Writes the sidecar in one rename; a folder that cannot be written to is indexed again each time."""
    rows = sorted(shards.values(), key=lambda s: s.path.name)
    vocabulary = sorted({x for s in rows for x in s.suffixes})
    place = {x: i for i, x in enumerate(vocabulary)}
    head = {
        "version": VERSION,
        "suffixes": vocabulary,
        "shards": [[s.path.name, s.size, s.mtime_ns, s.sha256, s.ignored, len(s), len(s.offsets)] for s in rows],
    }
    staging = folder / f".{SIDECAR}.{os.getpid()}"
    arrays = {name: np.concatenate([getattr(s, name) for s in rows]) for name in ("starts", "offsets", "sizes", "crcs")}
    try:
        with open(staging, "wb") as file:
            np.savez(
                file,
                head=np.frombuffer(json.dumps(head).encode(), np.uint8),
                keys=np.frombuffer("\n".join(k for s in rows for k in s.keys).encode(), np.uint8),
                suffixes=np.array([place[x] for s in rows for x in s.suffixes], np.uint16),
                **arrays,  # type: ignore[arg-type]
            )
        os.replace(staging, folder / SIDECAR)
    except OSError:
        staging.unlink(missing_ok=True)


def _load(folder: Path) -> dict[str, Shard]:
    """The sidecar's shards by file name; none if there is no sidecar that this version can read."""
    try:
        with np.load(folder / SIDECAR, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        head = json.loads(data["head"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return _unpack(folder, head, data) if head.get("version") == VERSION else {}


def _unpack(folder: Path, head: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Shard]:
    keys = data["keys"].tobytes().decode().split("\n")
    suffixes = [head["suffixes"][i] for i in data["suffixes"]]
    found, sample, member = {}, 0, 0
    for row, (name, size, mtime_ns, sha256, ignored, samples, members) in enumerate(head["shards"]):
        span = slice(member, member + members)
        starts = data["starts"][sample + row : sample + row + samples + 1]
        columns = {column: data[column][span] for column in ("offsets", "sizes", "crcs")}
        part = keys[sample : sample + samples]
        found[name] = Shard(
            folder / name, size, mtime_ns, sha256, ignored, part, starts, suffixes=suffixes[span], **columns
        )
        sample, member = sample + samples, member + members
    return found
