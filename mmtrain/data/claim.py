"""One writer to an output: a lock file beside it, held until every process that writes into it has ended.

A staging folder outlives the process that began it, so that its successor can go on there. It must not begin while
workers of the dead one still write: they hold the same open file, and the kernel lets the lock go with the last of
them. Nothing here knows what is written.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmtrain.errors import UserError

PATIENCE_SECONDS = 30.0  # for workers of a killed process, which end by themselves


class Claim:
    """Use it in a ``with`` block, which waits for another's to end, or with `attempt`. Hand it to the processes that
    write there; it is pickled as the open file.

    Raises:
        UserError: if another process is still at work on this output after `PATIENCE_SECONDS`.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out).absolute()
        self.path = self.out.with_name(f".{self.out.name}.lock")
        self.descriptor = -1

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.take():
            if time.monotonic() > deadline:
                came = f"process {self._owner()} is at work on it"
                raise UserError(str(self.out), came, "one writer at a time", "wait for it, or write elsewhere")
            time.sleep(0.02)
        return self

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """A block that is told whether the output is its own; it is not if another has it, or its folder is gone."""
        taken = self.take()
        try:
            yield taken
        finally:
            if taken:
                self.release()

    def take(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), self.path.stat()):  # still the file that others will find
                self.descriptor = descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        if self.descriptor != descriptor:
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return True

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def _owner(self) -> str:
        try:
            return self.path.read_text() or "unknown"
        except OSError:
            return "unknown"

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return _held, (reduction.DupFd(self.descriptor),)


def _held(duplicate: Any) -> int:
    """In another process: its own descriptor of the same open file, which is never closed before the process ends."""
    descriptor: int = duplicate.detach()
    return descriptor
