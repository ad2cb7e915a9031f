"""A report on shards for a person: what they hold, and what is wrong with them. It mends nothing."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mmtrain.data.decode import BadSample, Probe, captions_of, decode_encoded, probe
from mmtrain.data.index import ENCODED, MEDIA, Index, find_shards
from mmtrain.data.source import read_members
from mmtrain.errors import UserError, UserErrors

_NAMED = 20  # faults of one kind that the text names


def check(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Reads and decodes every sample and returns what was found, JSON-ready.

    Fields: ``ok``; ``shards``, ``samples``, ``bytes``; ``faults`` (texts, of shards that cannot be used); ``bad`` (key
    → why the sample does not decode); ``missing_captions`` and ``missing_media`` (keys); ``duplicates`` (lists of keys
    with the same bytes); ``ignored`` (files that belong to no sample); ``media`` (suffix → count); ``resolutions``
    ("WxH" → count); least, median and greatest of ``num_frames``, ``duration_seconds``, ``captions_per_sample`` and
    ``caption_words``.

    Raises:
        UserError: if there is no shard at the path at all.
    """
    paths = find_shards(path)
    index, faults = _readable(path, paths)
    found = _Found()
    for i in range(len(index)):
        found.look(index, i)
        if progress:
            progress(i + 1, len(index))
    report = {
        "path": str(path),
        "shards": len(paths),
        "samples": len(index),
        "bytes": sum(p.stat().st_size for p in paths),
        "fingerprint": index.fingerprint,
        "faults": faults,
        "ignored": sum(s.ignored for s in index.shards),
        **found.report(),
    }
    wrong = ("faults", "bad", "missing_captions", "missing_media")
    return {"ok": not any(report[name] for name in wrong), **report}


def _readable(path: str | Path, paths: list[Path]) -> tuple[Index, list[str]]:
    """The index of the shards that can be used, and a text for each fault of the others."""
    try:
        return Index.of(path), []
    except UserErrors as why:
        first = [str(e) for e in why.errors]
    except UserError as why:
        first = [str(why)]
    shards, faults = [], []
    for shard in paths:
        try:
            shards += Index.of(shard).shards
        except UserError as why:
            faults.append(str(why))
    return Index(shards), faults + [text for text in first if text not in faults]


class _Found:
    """What the samples seen so far hold."""

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}
        self.missing_captions: list[str] = []
        self.missing_media: list[str] = []
        self.media: Counter[str] = Counter()
        self.probes: list[Probe] = []
        self.captions: list[tuple[str, ...]] = []
        self.contents: dict[bytes, list[str]] = defaultdict(list)

    def look(self, index: Index, i: int) -> None:
        key = index.keys[i]
        try:
            members = read_members(index, i)
            captions = captions_of(members)
            self.captions.append(captions)
            if not captions:
                self.missing_captions.append(key)
            suffixes = [s for s in members if s in MEDIA]
            if not suffixes:
                self.missing_media.append(key)
            for suffix in suffixes:
                self.media[suffix] += 1
                self.contents[hashlib.sha256(members[suffix]).digest()].append(key)
                if suffix in ENCODED:
                    decode_encoded(members)
                else:
                    self.probes.append(probe(suffix, members))
        except (BadSample, UnicodeDecodeError) as why:
            self.bad[key] = str(why)

    def report(self) -> dict[str, Any]:
        return {
            "bad": self.bad,
            "missing_captions": self.missing_captions,
            "missing_media": self.missing_media,
            "duplicates": [keys for keys in self.contents.values() if len(keys) > 1],
            "media": dict(self.media.most_common()),
            "resolutions": dict(Counter(f"{p.width}x{p.height}" for p in self.probes).most_common()),
            "num_frames": _spread(p.num_frames for p in self.probes),
            "duration_seconds": _spread(p.num_frames / p.fps for p in self.probes if p.num_frames > 1),
            "captions_per_sample": _spread(len(c) for c in self.captions),
            "caption_words": _spread(len(line.split()) for c in self.captions for line in c),
        }


def _spread(values: Iterable[float]) -> list[float] | None:
    """Least, median (the upper one) and greatest; None if there are none."""
    rows = sorted(values)
    return [round(rows[k], 3) for k in (0, len(rows) // 2, -1)] if rows else None


def readable(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    total = report["samples"]
    lines = [
        f"{report['path']}: {total} samples in {report['shards']} shards, {report['bytes'] / 2**20:.1f} MiB",
        f"  fingerprint   {report['fingerprint'][:16]}",
        f"  media         {_counts(report['media'])}",
        f"  resolutions   {_counts(report['resolutions'])}",
    ]
    for title, name in (
        ("frames", "num_frames"),
        ("seconds", "duration_seconds"),
        ("captions", "captions_per_sample"),
        ("words", "caption_words"),
    ):
        if report[name]:
            low, middle, high = (f"{v:g}" for v in report[name])
            lines.append(f"  {title:<13} {low} to {high}, median {middle}")
    lines += _listed("caption missing", report["missing_captions"])
    lines += _listed("image or clip missing", report["missing_media"])
    lines += _listed("same content", [" = ".join(keys) for keys in report["duplicates"]])
    lines += _listed("does not decode", [f"{key}: {why}" for key, why in report["bad"].items()])
    lines += _listed("unusable", report["faults"])
    if report["ignored"]:
        lines.append(f"  files that belong to no sample: {report['ignored']}")
    return "\n".join([*lines, "ok" if report["ok"] else "NOT ok"])


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} ×{count}" for name, count in list(counts.items())[:8]]
    return ", ".join(shown) + (", …" if len(counts) > 8 else "") if shown else "none"


def _listed(title: str, rows: list[str]) -> list[str]:
    more = [f"    … and {len(rows) - _NAMED} more"] if len(rows) > _NAMED else []
    return [f"  {title}: {len(rows)}", *(f"    {row}" for row in rows[:_NAMED]), *more] if rows else []
