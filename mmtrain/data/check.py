"""A report on shards for a person: what they hold, and what is wrong with them. It mends nothing."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.decode import BadSample, Look, Probe, captions_of, decode, decode_encoded, probe
from mmtrain.data.duplicates import SIDE, SIGNATURE, groups, near_pairs, signature
from mmtrain.data.facts import ENCODED, MEDIA
from mmtrain.data.index import Index
from mmtrain.data.mask import mask_of
from mmtrain.data.scan import Shard
from mmtrain.data.source import read_members
from mmtrain.data.workers import Tick, spread
from mmtrain.errors import UserError

_NAMED = 20  # faults of one kind that the text names


def check(
    path: str | Path,
    *,
    heldout: str | Path | None = None,
    max_bad_fraction: float = 0.0,
    max_duplicate_fraction: float = 1.0,
    max_leak_fraction: float = 0.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reads every byte and decodes every sample and returns what was found, JSON-ready.

    Fields: ``ok``; ``shards``, ``samples``, ``bytes``, ``fingerprint``; ``faults`` (texts, of shards that cannot be
    used); ``bad`` (key → why the sample does not decode, and where); ``missing_captions`` and ``missing_media`` (key →
    shard); ``repeated_keys`` (key → the shards that have it); ``duplicates`` (lists of keys with the same bytes) and
    ``near_duplicates`` (that look the same); ``ignored`` (files that belong to no sample); ``media`` (suffix → count);
    ``resolutions`` ("WxH" → count); least, median and greatest of ``num_frames``, ``duration_seconds``,
    ``captions_per_sample`` and ``caption_words``; ``decoded_per_second`` (samples, by one process);
    ``leaked`` (key held out → key of the sample here that is, or looks, the same); and for each tolerance
    ``bad_fraction``, ``duplicate_fraction`` and ``leak_fraction`` as [found, allowed].

    Args:
        heldout: shards that none of these samples should be in; they are read too.
        max_bad_fraction: share of the samples that training would refuse: those in ``bad``, ``missing_captions``,
            ``missing_media`` and ``repeated_keys``.
        max_duplicate_fraction: share of the samples that could go without losing a content or a look.
        max_leak_fraction: share of ``heldout`` that may be leaked.
        workers: processes that read and decode.
        progress: called with (done, total), first of bytes, then of samples.

    Raises:
        UserError: if there is no shard at the path at all.
    """
    index, faults = Index.read(path, verify=True, workers=workers, progress=progress)
    found = _look(index, workers, progress)
    report = {
        "path": str(path),
        "shards": len(index.shards),
        "samples": len(index),
        "bytes": sum(s.size for s in index.shards),
        "fingerprint": index.fingerprint,
        "faults": [*map(str, faults), *found.mixed(str(path))],
        "ignored": sum(s.ignored for s in index.shards),
        "repeated_keys": _repeated(index),
        **found.report(),
        "leaked": {},
    }
    wrong = {key for name in ("bad", "missing_captions", "missing_media", "repeated_keys") for key in report[name]}
    spare = _spare(report["duplicates"] + report["near_duplicates"])
    report["bad_fraction"] = [len(wrong) / max(len(index), 1), max_bad_fraction]
    report["duplicate_fraction"] = [spare / max(len(index), 1), max_duplicate_fraction]
    if heldout is not None:
        others, more = Index.read(heldout, verify=True, workers=workers, progress=progress)
        report["faults"] += map(str, more)
        report["leaked"] = _leaked(found, _look(others, workers, progress))
        report["leak_fraction"] = [len(report["leaked"]) / max(len(others), 1), max_leak_fraction]
    past = [name for name, (came, allowed) in _tolerances(report).items() if came > allowed]
    return {"ok": not report["faults"] and not past, **report}


def _repeated(index: Index) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for shard in index.shards:
        for key in shard.keys:
            owners.setdefault(key, []).append(str(shard.path))
    return {key: paths for key, paths in owners.items() if len(paths) > 1}


def _tolerances(report: dict[str, Any]) -> dict[str, list[float]]:
    return {name: value for name, value in report.items() if name.endswith("_fraction")}


def _spare(alike: list[list[str]]) -> int:
    """How many keys could go, if one of each group stays; groups may overlap."""
    numbers: dict[str, int] = {}
    pairs = [
        (numbers.setdefault(keys[0], len(numbers)), numbers.setdefault(key, len(numbers)))
        for keys in alike
        for key in keys[1:]
    ]
    return sum(len(group) - 1 for group in groups(np.array(pairs, np.int64).reshape(-1, 2)))


@dataclass
class _Found:
    """What samples hold; that of several shards adds up."""

    bad: dict[str, str] = field(default_factory=dict)
    missing_captions: dict[str, str] = field(default_factory=dict)
    missing_media: dict[str, str] = field(default_factory=dict)
    media: Counter[str] = field(default_factory=Counter)
    probes: list[Probe] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    seen: list[tuple[str, bytes]] = field(default_factory=list)  # key and sha256 of each medium
    looks: list[tuple[str, np.ndarray]] = field(default_factory=list)  # key and SIGNATURE of each image or clip
    seconds: float = 0.0  # of decoding

    def __iadd__(self, other: "_Found") -> "_Found":
        for name in ("bad", "missing_captions", "missing_media"):
            getattr(self, name).update(getattr(other, name))
        self.media += other.media
        self.seconds += other.seconds
        for name in ("probes", "captions", "seen", "looks"):
            getattr(self, name).extend(getattr(other, name))
        return self

    def sample(self, index: Index, i: int) -> None:
        key, shard = index.keys[i], str(index.shards[index.locate(i)[0]].path)
        try:
            members = read_members(index, i)
            captions = captions_of(members)
            self.captions.append(captions)
            if not captions:
                self.missing_captions[key] = shard
            suffixes = [s for s in members if s in MEDIA]
            if not suffixes:
                self.missing_media[key] = shard
            for suffix in suffixes:
                self.media[suffix] += 1
                self.seen.append((key, hashlib.sha256(members[suffix]).digest()))
                self.medium(key, suffix, members)
            if len(suffixes) > 1:
                raise BadSample(f"holds {len(suffixes)} media ({', '.join(suffixes)})")
        except (BadSample, UnicodeDecodeError) as why:
            self.bad[key] = f"{why}; in {shard}"

    def medium(self, key: str, suffix: str, members: dict[str, bytes]) -> None:
        started = time.perf_counter()
        if suffix in ENCODED:
            decode_encoded(members)
            self.seconds += time.perf_counter() - started
            return
        found = probe(suffix, members)
        mask_of(members, Look())
        self.seconds += time.perf_counter() - started
        self.probes.append(found)
        count = 3 if found.num_frames >= 3 else 1
        look = Look(num_frames=count, stride=max((found.num_frames - 1) // 2, 1), size=(SIDE, SIDE))
        self.looks.append((key, signature(decode(key, members, look, 0.0).frames)))

    def mixed(self, path: str) -> list[str]:
        """A fault, if there are both pixels and encoder outputs."""
        if len({suffix in ENCODED for suffix in self.media}) < 2:
            return []
        fix = "keep them in separate folders"
        return [str(UserError(path, "pixels and encoder outputs are mixed", "one kind in one source", fix))]

    def report(self) -> dict[str, Any]:
        exact: dict[bytes, list[str]] = {}
        for key, digest in self.seen:
            exact.setdefault(digest, []).append(key)
        exact = {digest: keys for digest, keys in exact.items() if len(keys) > 1}
        repeats = {key for keys in exact.values() for key in keys[1:]}
        names = [key for key, _ in self.looks if key not in repeats]
        firsts, pairs = near_pairs(_signatures((key, s) for key, s in self.looks if key not in repeats))
        equal = np.stack([firsts, np.arange(len(firsts))], axis=1)
        near = groups(np.concatenate([pairs, equal[firsts < equal[:, 1]]]))
        return {
            "bad": self.bad,
            "missing_captions": self.missing_captions,
            "missing_media": self.missing_media,
            "duplicates": list(exact.values()),
            "near_duplicates": [[names[i] for i in group] for group in near],
            "media": dict(self.media.most_common()),
            "resolutions": dict(Counter(f"{p.width}x{p.height}" for p in self.probes).most_common()),
            "num_frames": _spread(p.num_frames for p in self.probes),
            "duration_seconds": _spread(p.num_frames / p.fps for p in self.probes if p.num_frames > 1),
            "captions_per_sample": _spread(len(c) for c in self.captions),
            "caption_words": _spread(len(line.split()) for c in self.captions for line in c),
            "decoded_per_second": round(len(self.seen) / self.seconds, 1) if self.seconds else None,
        }


def _look(index: Index, workers: int, progress: Callable[[int, int], None] | None) -> _Found:
    done, found = 0, _Found()

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(index))

    results = dict(spread(_look_at, index.shards, workers=workers, tick=tick))
    for number in range(len(index.shards)):
        found += results[number]
    return found


def _look_at(shard: Shard, tick: Tick) -> _Found:
    index, found = Index([shard]), _Found()
    for i in range(len(index)):
        found.sample(index, i)
        tick(1)
    return found


def _signatures(looks: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    return np.array([row for _, row in looks], SIGNATURE)


def _leaked(train: _Found, heldout: _Found) -> dict[str, str]:
    """Key held out → key of a sample to train on that has the same bytes or looks the same."""
    digests = {digest: key for key, digest in reversed(train.seen)}
    found = {key: digests[digest] for key, digest in heldout.seen if digest in digests}
    looks, count = [*train.looks, *heldout.looks], len(train.looks)
    firsts, pairs = near_pairs(_signatures(looks))
    owners = {i: i for i in range(count)}  # a first that is held out → the sample to train on that looks like it
    for i, j in pairs.tolist():
        if i < count <= j:
            owners.setdefault(j, i)
    for j in range(count, len(looks)):
        if (owner := owners.get(int(firsts[j]))) is not None:
            found.setdefault(looks[j][0], looks[owner][0])
    return dict(sorted(found.items()))


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
    if report["decoded_per_second"]:
        lines.append(f"  decoding      {report['decoded_per_second']:g} samples a second and process")
    again = "or `mmtrain shards pack` these shards again"
    lines += _listed(
        f"caption missing (write it, {again} with --where 'captions>0')", _placed(report["missing_captions"])
    )
    lines += _listed("image or clip missing (add it, or leave the sample out)", _placed(report["missing_media"]))
    rows = [f"{key}: in {', '.join(paths)}" for key, paths in report["repeated_keys"].items()]
    lines += _listed("key of several shards (rename them and pack again)", rows)
    lines += _listed("same content", [" = ".join(keys) for keys in report["duplicates"]])
    lines += _listed("same look", [" ~ ".join(keys) for keys in report["near_duplicates"]])
    lines += _listed("held out, but here too", [f"{key} ~ {here}" for key, here in report["leaked"].items()])
    rows = [f"{key}: {why}" for key, why in report["bad"].items()]
    lines += _listed(f"does not decode (mend it, {again} with --max-bad-fraction)", rows)
    lines += _listed("unusable", report["faults"])
    if report["ignored"]:
        lines.append(f"  files that belong to no sample: {report['ignored']}")
    for name, (came, allowed) in _tolerances(report).items():
        if came > allowed:
            lines.append(f"  {name.replace('_', ' ')}: {came:.2%} of the samples, and {allowed:.2%} are allowed")
    return "\n".join([*lines, "ok" if report["ok"] else "NOT ok"])


def _placed(keys: dict[str, str]) -> list[str]:
    return [f"{key}: in {shard}" for key, shard in keys.items()]


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} ×{count}" for name, count in list(counts.items())[:8]]
    return ", ".join(shown) + (", …" if len(counts) > 8 else "") if shown else "none"


def _listed(title: str, rows: list[str]) -> list[str]:
    more = [f"    … and {len(rows) - _NAMED} more"] if len(rows) > _NAMED else []
    return [f"  {title}: {len(rows)}", *(f"    {row}" for row in rows[:_NAMED]), *more] if rows else []
