"""Folders, tables and shards → shards. The files' own bytes are kept; nothing is re-encoded.

What is packed is `items.py`. Here it is dealt out to shards of equal size beforehand, so that each shard can be written
by any process, at any time, with the same bytes. What shards hold afterwards is told by `check.py`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmtrain.data.claim import Claim
from mmtrain.data.decode import BadSample, Look, decode_encoded, probe
from mmtrain.data.facts import ENCODED, MEDIA
from mmtrain.data.index import Index
from mmtrain.data.items import Item, Listing, listed
from mmtrain.data.mask import mask_of
from mmtrain.data.shards import refuse_existing, write_members
from mmtrain.data.tables import COLUMNS
from mmtrain.data.tar import TarWriter
from mmtrain.data.workers import Tick, spread
from mmtrain.errors import UserError

PLAN = "plan.json"
VERSION = 1
SHARD_BYTES = 1 << 30  # of a shard, about, if shard_size allows more


@dataclass
class Packed:
    """What packing did."""

    folder: Path
    samples: int = 0
    shards: int = 0
    bad: dict[str, str] = field(default_factory=dict)  # item left out → why it does not decode
    ignored: list[str] = field(default_factory=list)  # files of other kinds, left out
    missed: int = 0  # samples left out by ``where``

    def text(self) -> str:
        lines = [f"{self.samples} samples in {self.folder} ({self.shards} shards)"]
        lines += [f"left out {name}: {why}" for name, why in self.bad.items()]
        if self.missed:
            lines.append(f"left out by `where`: {self.missed}")
        if self.ignored:
            named = ", ".join(self.ignored[:8]) + (", …" if len(self.ignored) > 8 else "")
            lines.append(f"not images or clips, ignored: {len(self.ignored)} ({named})")
        return "\n".join(lines)


def pack(
    source: str | Path,
    out: str | Path,
    *,
    caption_template: str | None = None,
    columns: tuple[str, str] = COLUMNS,
    where: Sequence[str] = (),
    keys: Collection[str] | None = None,
    shard_size: int = 1000,
    max_bad_fraction: float = 0.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Packs images (jpg, jpeg, png, webp) and clips (mp4, webm) with their captions into shards.

    Every file is decoded once, whole, before it goes in. The same input gives the same bytes whatever the number of
    workers. If the work is cut off, the same call goes on after the shards that were whole; the output has its name
    only when all of them are.

    Args:
        source: a folder, subfolders included, with a .txt beside each file or a metadata.csv, .jsonl or .parquet; or
            such a table by itself, with names relative to its folder; or shards, whose members are carried over.
        caption_template: caption of files that have none; ``{name}`` stands for the file's name in words.
        columns: of a table, the names of the files and the captions.
        where: clauses such as ``width>=256`` or ``captions>0`` (names of `FACTS`); samples that miss one are left out
            and counted. One whose header is damaged cannot be judged: it counts as one that fails to decode.
        keys: of the samples that are packed, the others are left out; None: all are.
        shard_size: samples to a shard, about: shards are cut so that their bytes are equal.
        max_bad_fraction: share of the files that ``where`` takes that may fail to decode; they are left out, and named
            in the result.
        workers: processes that write shards.
        progress: called with (files done, files).

    Raises:
        UserError: for an empty source, an output that exists, captions without files, files without captions, two
            files of one name, or too many that do not decode; nothing is left behind.
    """
    out = Path(out)
    refuse_existing(out)
    listing = listed(source, caption_template, columns)
    listing.keep(where)
    if keys is not None:
        listing.items = [item for item in listing.items if item.key in keys]
    with Claim(out) as claim:
        refuse_existing(out)  # another may have finished it meanwhile
        return _pack(listing, out, shard_size, max_bad_fraction, workers, progress, claim)


def _pack(
    listing: Listing,
    out: Path,
    shard_size: int,
    max_bad_fraction: float,
    workers: int,
    progress: Callable[[int, int], None] | None,
    claim: Claim,
) -> Packed:
    total = len(listing.items)
    staging = out.absolute().with_name(f".{out.absolute().name}.partial")
    _open(staging, listing.items, shard_size)
    parts = [_Part(staging / f"{n:06d}.tar", run) for n, run in enumerate(cut(listing.items, shard_size))]
    notes = {part.path: note for part in parts if (note := part.note())}
    done = sum(len(part.items) for part in parts if part.path in notes)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    unwritten = [part for part in parts if part.path not in notes]
    try:
        for number, note in spread(_write, unwritten, workers=workers, tick=tick, claim=claim):
            notes[unwritten[number].path] = note
            _refuse_bad(listing.where, notes.values(), total, max_bad_fraction)
        _refuse_bad(listing.where, notes.values(), total, max_bad_fraction)
    except _TooManyBad:
        shutil.rmtree(staging)
        raise
    _finish(staging, out, [part.path for part in parts if notes[part.path].samples], workers)
    ordered = [notes[part.path] for part in parts]
    bad = {name: why for note in ordered for name, why in note.bad.items()}
    count = sum(note.samples for note in ordered)
    return Packed(out, count, sum(note.samples > 0 for note in ordered), bad, listing.ignored, listing.missed)


def cut(items: list[Item], shard_size: int) -> list[list[Item]]:
    """Consecutive runs of about equal bytes, as many as ``shard_size`` or `SHARD_BYTES` ask for; none is empty."""
    if shard_size < 1:
        raise UserError("shard size", f"{shard_size} samples", "at least 1", "give a larger shard size")
    weights = [item.size + 1 for item in items]
    total, before = sum(weights), 0
    count = max(-(-len(items) // shard_size), -(-total // SHARD_BYTES))
    runs: list[list[Item]] = [[] for _ in range(count)]
    for item, weight in zip(items, weights, strict=True):
        runs[(2 * before + weight) * count // (2 * total)].append(item)  # where its middle falls
        before += weight
    return [run for run in runs if run]


@dataclass
class _Note:
    """What is kept beside a shard that is whole, until all are."""

    samples: int
    bad: dict[str, str]


@dataclass(frozen=True)
class _Part:
    """A shard to be written."""

    path: Path
    items: list[Item]

    def note(self) -> _Note | None:
        """What is known of the shard, if it is whole."""
        try:
            note = _Note(**json.loads(self.path.with_suffix(".json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return note if self.path.exists() or not note.samples else None


def _open(staging: Path, items: list[Item], shard_size: int) -> None:
    """What is left whole of a cut-off run of the same plan, or an empty folder."""
    digest = hashlib.sha256(f"{VERSION} {shard_size}".encode())
    paths = {piece.path for item in items for piece in item.pieces}
    changed = {path: path.stat().st_mtime_ns for path in paths}
    for item in items:
        times = [changed[piece.path] for piece in item.pieces]
        digest.update(repr((item.key, item.pieces, sorted(item.texts.items()), item.unsaid, times)).encode())
    plan = json.dumps({"content": digest.hexdigest()})
    try:
        same = (staging / PLAN).read_text() == plan
    except OSError:
        same = False
    if not same:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        (staging / PLAN).write_text(plan)
    for torn in [*_torn(staging)]:
        torn.unlink()


def _torn(staging: Path) -> Iterable[Path]:
    """Files that a killed process was writing."""
    return staging.glob("*.staging")  # the hidden ones, too


def _write(part: _Part, tick: Tick) -> _Note:
    """Writes a shard, then its note. Without a sample that decodes there is no shard, only the note."""
    note, tar = _Note(0, {}), TarWriter(part.path)
    try:
        for item in part.items:
            try:
                members = item.read()
                _decoded(members)
                if item.unsaid:
                    raise BadSample(f"its header does not tell {item.unsaid}, by which it was to be chosen")
                write_members(tar, item.key, members)
                note.samples += 1
            except BadSample as why:
                note.bad[item.name] = str(why)
            tick(1)
        tar.close() if note.samples else tar.abandon()
    except BaseException:
        tar.abandon()
        raise
    place = part.path.with_suffix(".json")
    place.with_suffix(".staging").write_text(json.dumps(vars(note)))
    os.replace(place.with_suffix(".staging"), place)
    return note


def _decoded(members: dict[str, bytes]) -> None:
    """Raises BadSample if there is no medium, or one that does not decode."""
    media = [suffix for suffix in members if suffix in MEDIA]
    if not media:
        raise BadSample(f"no image or clip (members: {', '.join(members)})")
    for suffix in media:
        if suffix in ENCODED:
            decode_encoded(members)
        else:
            probe(suffix, members)
            mask_of(members, Look())


class _TooManyBad(UserError):
    """Told apart from other faults, because it leaves nothing behind."""


def _refuse_bad(where: str, notes: Iterable[_Note], total: int, max_bad_fraction: float) -> None:
    bad = {name: why for note in notes for name, why in note.bad.items()}
    if len(bad) > max_bad_fraction * total or len(bad) == total:
        named = "; ".join(f"{name}: {why}" for name, why in list(bad.items())[:5])
        came = f"{len(bad)} of {total} files do not decode ({named})"
        fix = "mend or remove them, or raise max_bad_fraction to leave them out"
        raise _TooManyBad(where, came, f"at most a share of {max_bad_fraction:g}", fix)


def _finish(staging: Path, out: Path, shards: list[Path], workers: int) -> None:
    """Numbers the shards without gaps, indexes them and gives the folder its name."""
    wanted = [staging / f"{n:06d}.tar" for n in range(len(shards))]
    if shards != wanted:
        (staging / PLAN).unlink()  # cut off from here on, the numbers would lie: start anew
        for before, after in zip(shards, wanted, strict=True):
            os.replace(before, after)
    Index.of(staging, workers=workers)
    (staging / PLAN).unlink(missing_ok=True)
    for path in (*staging.glob("*.json"), *_torn(staging)):
        path.unlink()
    refuse_existing(out)
    os.replace(staging, out)
