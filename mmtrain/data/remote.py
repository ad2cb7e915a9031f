"""Shards behind URLs: copied whole into a local folder, by content, before they are indexed and read like any others.

A copy that was broken off goes on where it stopped. What a copy holds is `index.py`; protocols are fsspec's. They run
in a process of their own, because their event loops do not survive the forks that data workers are.
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mmtrain.data.index import expand
from mmtrain.errors import UserError

WAITS = (0.2, 1.0, 4.0, 15.0)  # seconds before each new attempt
CHUNK = 8 << 20  # bytes asked for at a time
AT_ONCE = 4  # shards copied at a time
Got = TypeVar("Got")


def is_remote(where: str) -> bool:
    return "://" in where


def fetched(where: str, copies: Path) -> str:
    """Local copies of the shards at a URL, as a pattern that `Index.of` takes, in the order of their names.

    Each lies at ``copies/<beginning of its sha256>/<name>``; one whose size and tag on the server are as they were when
    it was copied is used again.

    Args:
        where: ``s3://``, ``gs://``, ``hf://`` or ``https://``; one shard, a pattern (``{000000..000011}``), or a
            folder, which ends in a slash.
        copies: local folder, made if need be.

    Raises:
        UserError: naming the URL, if it is not there or not allowed, what reads its protocol is not installed, or the
            copy fails again and again.
    """
    plan = {"where": where, "copies": str(copies.absolute()), "waits": WAITS, "chunk": CHUNK}
    words = [sys.executable, "-m", "mmtrain.data.remote"]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(words, input=json.dumps(plan), stdout=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        raise UserError(where, "copying ended without an answer", "local copies", "look at what was printed before")
    answer = json.loads(done.stdout)
    if "fault" in answer:
        raise UserError(*answer["fault"])
    return f"{copies.absolute()}/{{{','.join(answer['places'])}}}"


def main() -> None:
    """The process that copies: a plan as JSON comes in, places below ``copies`` or a fault go out."""
    global WAITS, CHUNK
    plan = json.load(sys.stdin)
    WAITS, CHUNK = tuple(plan["waits"]), plan["chunk"]
    copies = Path(plan["copies"])
    try:
        answer = {"places": [str(path.relative_to(copies)) for path in copy_all(plan["where"], copies)]}
    except UserError as why:
        answer = {"fault": [why.where, why.came, why.wanted, why.fix]}
    print(json.dumps(answer), flush=True)
    os._exit(0)


def copy_all(where: str, copies: Path) -> list[Path]:
    """The copies, in this process."""
    urls = [url for pattern in expand(where) for url in (_listed(pattern) if pattern.endswith("/") else [pattern])]
    copies.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda url: _copy(url, copies), urls))


def _listed(folder: str) -> list[str]:
    system, path = _open(folder)
    names = sorted(n for n in _patiently(folder, lambda: system.ls(path, detail=False)) if str(n).endswith(".tar"))
    if not names:
        raise UserError(folder, "no .tar is listed there", "a folder of shards", "check the URL, or name the shards")
    return [system.unstrip_protocol(name) for name in names]


def _copy(url: str, copies: Path) -> Path:
    name = re.sub(r"[^\w.-]", "_", url.split("?")[0].rsplit("/", 1)[-1])
    word = hashlib.blake2b(url.encode(), digest_size=12).hexdigest()
    record = copies / f"{word}.json"
    with open(copies / f"{word}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ranks and neighbouring runs copy a shard once
        system, path = _open(url)
        tag = _tag(url, system, path)
        if record.exists():
            known = json.loads(record.read_text())
            place = copies / known["sha256"][:16] / name
            if known["tag"] == tag and place.exists() and place.stat().st_size == tag["size"]:
                return place
        version = hashlib.blake2b(json.dumps(tag).encode(), digest_size=4).hexdigest()
        part = copies / f"{word}.{version}.part"  # of this very version: two halves of two shards are none
        _download(url, system, path, tag["size"], part)
        with open(part, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        place = copies / sha256[:16] / name
        place.parent.mkdir(exist_ok=True)
        os.replace(part, place)
        record.write_text(json.dumps({"url": url, "tag": tag, "sha256": sha256}))
        return place


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
