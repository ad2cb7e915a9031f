"""Room for copies of shards: what they may take together, which go first, and who uses one at this moment.

A copy is held while it is read (shared) or written (alone); one that is held is never removed. Of the others that which
was held longest ago goes first. Locks are advisory and on files of their own, so they end with the process that has
them; the time of such a file is when it was last held. What is broken off counts with its whole size.
"""

import fcntl
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_AGAIN = 0.1  # seconds between two looks for room


@contextmanager
def held(copies: Path, name: str, *, alone: bool = False) -> Iterator[None]:
    """Holds what goes by a name: the beginning of a copy's sha256, or the word of a URL that is being copied."""
    with open(copies / f"{name}.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        os.utime(file.fileno())
        yield


def reserve(
    copies: Path, part: Path, size: int, *, limit: int | None, keep: Collection[str] = (), patient: bool = True
) -> bool:
    """Makes an empty part whose size in bytes counts from now on, after removing copies that nobody holds.

    Args:
        part: ``<word>.<version>.<size in bytes>.part`` below ``copies``.
        limit: bytes of all copies together, at least ``size``; None: as many as there are.
        keep: names of copies that stay though nobody holds them now.
        patient: wait for room where it is held; else say that there is none.

    Returns:
        Whether there is room.
    """
    while limit is not None:
        with held(copies, "room", alone=True):
            more = 0 if part.exists() else size
            if _make_room(copies, limit - more, keep):
                part.touch()
                return True
        if not patient:
            return False
        time.sleep(LOOK_AGAIN)
    part.touch()
    return True


def _make_room(copies: Path, limit: int, keep: Collection[str]) -> bool:
    """Whether all copies take at most ``limit`` bytes, after removing what may go."""
    found = [(path, path.name.split(".")[0], int(path.name.split(".")[-2])) for path in copies.glob("*.part")]
    # after the parts, so that one that becomes whole meanwhile is counted twice rather than never
    found += [(path, path.parent.name, path.stat().st_size) for path in copies.glob("*/*.tar")]
    found.sort(key=lambda row: _last_held(copies, row[1]))
    excess = sum(size for *_, size in found) - limit
    for path, name, size in found:
        if excess <= 0:
            break
        if name not in keep and _removed(copies, path, name):
            excess -= size
    return excess <= 0


def _last_held(copies: Path, name: str) -> int:
    lock = copies / f"{name}.lock"
    return lock.stat().st_mtime_ns if lock.exists() else 0


def _removed(copies: Path, path: Path, name: str) -> bool:
    """Removes a copy or part, unless it is held. Its index, beside it, stays."""
    with open(copies / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
    return True
