"""Shards behind URLs, copied by content into a local folder; what is done with the copies is `copies.py`.

A copy that was broken off goes on where it stopped. Protocols are fsspec's. They run in a process of their own, because
their event loops do not survive the forks that data workers are.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mmtrain.data.index import SIDECAR, Index, expand, load, save
from mmtrain.data.room import held, reserve
from mmtrain.data.scan import Shard
from mmtrain.errors import UserError

WAITS = (0.2, 1.0, 4.0, 15.0)  # seconds before each new attempt
CHUNK = 8 << 20  # bytes asked for at a time
AT_ONCE = 4  # shards copied at a time
Got = TypeVar("Got")


def is_remote(where: str) -> bool:
    return "://" in where


@dataclass(frozen=True)
class Job:
    """What is to be copied, and how; it travels as JSON.

    Args:
        where: URLs (``s3://``, ``gs://``, ``hf://``, ``https://``): shards, patterns (``{000000..000011}``), or
            folders, which end in a slash.
        copies: local folder, made if need be. A copy lies at ``copies/<beginning of its sha256>/<name>``.
        limit: bytes of all copies there together, or None.
        known: URL → sha256 that the shard must have.
        keep: names of copies that are not removed for these.
        patient: wait for room; else leave out what has none.
        index_only: an index of the shard is enough, made where there is none.
    """

    where: Sequence[str]
    copies: str
    limit: int | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    keep: Collection[str] = ()
    patient: bool = True
    index_only: bool = False


@dataclass(frozen=True)
class Copy:
    """A shard and where its copy lies, or will."""

    url: str
    place: str
    sha256: str


def fetched(where: str, copies: Path) -> str:
    """Local copies of all shards at a URL, as a pattern that `Index.of` takes, in the order of their names.

    One whose size and tag on the server are as they were when it was copied is used again.

    Raises:
        UserError: naming the URL, if it is not there or not allowed, what reads its protocol is not installed, or the
            copy fails again and again.
    """
    places = [
        str(Path(copy.place).relative_to(copies.absolute())) for copy in run(Job([where], str(copies.absolute())))
    ]
    return f"{copies.absolute()}/{{{','.join(places)}}}"


def run(job: Job) -> list[Copy]:
    """The copies in the order of their names. Raises UserError as `fetched`."""
    answer, _ = start(job, subprocess.PIPE).communicate()
    try:
        told = json.loads(answer)
    except ValueError as why:
        came, fix = "copying ended without an answer", "look at what was printed before"
        raise UserError(", ".join(job.where), came, "local copies", fix) from why
    if "fault" in told:
        raise UserError(*told["fault"])
    return [Copy(*row) for row in told["copies"]]


def start(job: Job, answer: int) -> subprocess.Popen[str]:
    """The process that copies; its answer goes where ``answer`` says (a constant of subprocess)."""
    plan = {"job": asdict(job), "waits": WAITS, "chunk": CHUNK}
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    words = [sys.executable, "-m", "mmtrain.data.remote"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=answer, text=True, env=env)
    assert process.stdin is not None
    with process.stdin as plans:  # not an argument: a signed URL is nobody else's to see
        json.dump(plan, plans)
    process.stdin = None
    return process


def main() -> None:
    """The process that copies: a plan as JSON comes in, copies or a fault go out."""
    global WAITS, CHUNK
    plan = json.load(sys.stdin)
    WAITS, CHUNK = tuple(plan["waits"]), plan["chunk"]
    try:
        answer: dict[str, Any] = {"copies": [[c.url, c.place, c.sha256] for c in copy_all(Job(**plan["job"]))]}
    except UserError as why:
        answer = {"fault": [why.where, why.came, why.wanted, why.fix]}
    print(json.dumps(answer), flush=True)
    os._exit(0)


def copy_all(job: Job) -> list[Copy]:
    """The copies, in this process."""
    patterns = [pattern for where in job.where for pattern in expand(where)]
    urls = [url for pattern in patterns for url in (_listed(pattern) if pattern.endswith("/") else [pattern])]
    Path(job.copies).mkdir(parents=True, exist_ok=True)
    told = {folder: _uploaded(folder, job) for folder in {_folder(url) for url in urls}} if job.index_only else {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda url: _copy(url, job, told.get(_folder(url), {}).get(_name(url))), urls)
        return [copy for copy in found if copy]


def _folder(url: str) -> str:
    return url.rsplit("/", 1)[0]


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _uploaded(folder: str, job: Job) -> dict[str, Shard]:
    """What an index beside the shards, uploaded with them, says of each by its name; nothing where there is none.

    A shard is not read to prove it: its size must be that on the server, and its sha256 is compared when it is copied.
    """
    url = f"{folder}/{SIDECAR}"
    system, path = _open(url)
    own = Path(job.copies) / f"index-{hashlib.blake2b(url.encode(), digest_size=12).hexdigest()}"
    try:
        payload: bytes = _patiently(url, lambda: system.cat_file(path))
    except UserError:
        return {}
    own.mkdir(exist_ok=True)
    with held(Path(job.copies), own.name, alone=True):
        (own / SIDECAR).write_bytes(payload)
        return load(own, {})


def _listed(folder: str) -> list[str]:
    system, path = _open(folder)
    names = sorted(n for n in _patiently(folder, lambda: system.ls(path, detail=False)) if str(n).endswith(".tar"))
    if not names:
        raise UserError(folder, "no .tar is listed there", "a folder of shards", "check the URL, or name the shards")
    return [system.unstrip_protocol(name) for name in names]


def _copy(url: str, job: Job, uploaded: Shard | None) -> Copy | None:
    """None where there is no room and the job does not wait for it. ``uploaded`` is the shard by an index beside it."""
    copies = Path(job.copies)
    word = hashlib.blake2b(url.encode(), digest_size=12).hexdigest()
    record = copies / f"{word}.json"
    with held(copies, word, alone=True):  # ranks and neighbouring runs copy a shard once
        system, path = _open(url)
        tag = _tag(url, system, path)
        known = json.loads(record.read_text()) if record.exists() else None
        if known and known["tag"] == tag:
            place = _place(copies, known["sha256"], url)
            whole = place.exists() and place.stat().st_size == tag["size"]
            if whole or (job.index_only and _indexed(place)):
                return Copy(url, str(place), _expected(url, known["sha256"], job))
        if uploaded is not None and uploaded.size == tag["size"]:
            place = _place(copies, uploaded.sha256, url)
            with held(copies, place.parent.name, alone=True):
                place.parent.mkdir(exist_ok=True)
                save(place.parent, {place.name: replace(uploaded, path=place)})
            record.write_text(json.dumps({"url": url, "tag": tag, "sha256": uploaded.sha256}))
            return Copy(url, str(place), _expected(url, uploaded.sha256, job))
        if job.limit is not None and tag["size"] > job.limit:
            came, wanted = f"it has {tag['size']:,} bytes", f"shards within the limit of copies, {job.limit:,} bytes"
            raise UserError(url, came, wanted, "raise dataset.max_copies_gb")
        version = hashlib.blake2b(json.dumps(tag).encode(), digest_size=4).hexdigest()
        part = (
            copies / f"{word}.{version}.{tag['size']}.part"
        )  # of this very version: two halves of two shards are none
        if not reserve(copies, part, tag["size"], limit=job.limit, keep=job.keep, patient=job.patient):
            return None
        _download(url, system, path, tag["size"], part)
        return _settled(url, tag, part, record, job)


def _settled(url: str, tag: Mapping[str, Any], part: Path, record: Path, job: Job) -> Copy:
    """Moves a whole part to where its content says, and has it indexed there if that is what it was copied for."""
    with open(part, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    place = _place(Path(job.copies), sha256, url)
    with held(Path(job.copies), place.parent.name, alone=True):
        place.parent.mkdir(exist_ok=True)
        if before := _indexed(place):
            os.utime(part, ns=(before.mtime_ns, before.mtime_ns))  # the same bytes: the index holds
        os.replace(part, place)
        record.write_text(json.dumps({"url": url, "tag": tag, "sha256": sha256}))
        if job.index_only:
            Index.of(place)
    return Copy(url, str(place), _expected(url, sha256, job))


def _indexed(place: Path) -> Shard | None:
    return load(place.parent, {place.name: place}).get(place.name)


def _place(copies: Path, sha256: str, url: str) -> Path:
    return copies / sha256[:16] / re.sub(r"[^\w.-]", "_", url.split("?")[0].rsplit("/", 1)[-1])


def _expected(url: str, sha256: str, job: Job) -> str:
    if (wanted := job.known.get(url, sha256)) != sha256:
        fix = "put the shard back, or start a new run on what is there now (with its index, if one was uploaded)"
        raise UserError(url, f"changed since the run began (sha256 {sha256[:12]}…)", f"sha256 {wanted[:12]}…", fix)
    return sha256


def _tag(url: str, system: Any, path: str) -> dict[str, Any]:
    """The size in bytes, and what the server says of the version."""
    system.invalidate_cache()
    info = _patiently(url, lambda: system.info(path))
    if not info.get("size"):
        raise UserError(url, "the server tells no size, or 0", "the size of a shard", "copy the shards by hand")
    version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("blob_id") or ""
    return {"size": int(info["size"]), "version": str(version)}


def _download(url: str, system: Any, path: str, size: int, part: Path) -> None:
    """Appends to the part until it is whole; each chunk must have the length that was asked for."""

    def chunk(start: int, stop: int) -> bytes:
        data: bytes = system.cat_file(path, start=start, end=stop)
        if len(data) == size:  # a server that knows no ranges gives everything
            data = data[start:stop]
        if len(data) != stop - start:
            raise OSError(f"{len(data)} of {stop - start} bytes came")
        return data

    with open(part, "ab") as file:
        while (start := file.tell()) < size:
            stop = min(start + CHUNK, size)
            file.write(_patiently(url, lambda start=start, stop=stop: chunk(start, stop)))  # type: ignore[misc]
            file.flush()
        os.fsync(file.fileno())


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    except ImportError as why:
        fix = "pip install 'mmtrain[remote]'"
        raise UserError(url, f"what reads this protocol is not installed ({why})", "an fsspec package", fix) from why
    except ValueError as why:
        raise UserError(url, str(why), "s3://, gs://, hf:// or https://", "check the URL") from why


def _patiently(url: str, get: Callable[[], Got]) -> Got:
    """Tries again after what may pass. The libraries behind the protocols share no class of errors."""
    for wait in WAITS:
        try:
            return get()
        except (FileNotFoundError, PermissionError, UserError):
            break
        except Exception:
            time.sleep(wait)
    try:
        return get()
    except UserError:
        raise
    except FileNotFoundError as why:
        raise UserError(url, "no shard is there", "an existing .tar file", "check the URL") from why
    except PermissionError as why:
        raise UserError(url, f"not allowed ({why})", "readable shards", "log in, or check the bucket's rights") from why
    except Exception as why:
        came = f"cannot be read ({type(why).__name__}: {why}; tried {len(WAITS) + 1} times)"
        fix = "check the network, then start again; what was copied is kept"
        raise UserError(url, came, "a shard that comes whole", fix) from why


if __name__ == "__main__":
    main()
