"""Shards behind URLs as a source reads them: an index of all, and copies of those that are in use or come next.

A shard is copied when it is first read; those that the plan of the run names next are copied meanwhile by a process in
the background. Neither decides which sample comes: that follows from the index, which is there before the first batch.
"""

import subprocess
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mmtrain.data.index import Index, load
from mmtrain.data.remote import Copy, Job, run, start
from mmtrain.data.room import held
from mmtrain.data.scan import Shard
from mmtrain.errors import UserError


class Copies:
    """The shards at a URL, and those of their copies that there is room for.

    Args:
        where: as `remote.Job` takes it.
        folder: where copies are kept.
        limit: bytes of all copies there together, or None for as many as there are.
        window: shards whose samples are mixed, which therefore are in use together.
        prefetch: windows that are copied before they are needed.

    Raises:
        UserError: as `remote.fetched`; or if the limit is less than a window can take.
    """

    def __init__(self, where: str, folder: Path, *, limit: int | None, window: int, prefetch: int) -> None:
        self.folder, self.limit = folder.absolute(), limit
        found = run(Job([where], str(self.folder), limit=limit, index_only=True))
        self.urls = [copy.url for copy in found]
        self.index = Index([self._indexed(copy) for copy in found])
        self._check(where, window)
        self.horizon = (1 + prefetch) * window * max(self.index.lengths) if prefetch else 0
        self._keep: list[str] = []  # names of copies that come next, all of which have room together
        self._running: list[subprocess.Popen[str]] = []  # at most one
        weakref.finalize(self, _stop, self._running)

    def _indexed(self, copy: Copy) -> Shard:
        place = Path(copy.place)
        with held(self.folder, place.parent.name):
            if place.exists():
                return Index.of(place).shards[0]
            return load(place.parent, {place.name: place})[place.name]

    def _check(self, where: str, window: int) -> None:
        most = sum(sorted((shard.size for shard in self.index.shards), reverse=True)[:window])
        if self.limit is not None and most > self.limit:
            came = f"a window of {window} shards takes up to {most:,} bytes, the limit of copies is {self.limit:,}"
            fix = f"set dataset.max_copies_gb to at least {most / 1e9:.2g}, or make dataset.window smaller"
            raise UserError(where, came, "room for a window", fix)

    @contextmanager
    def held(self, number: int) -> Iterator[None]:
        """Holds the copy of a shard, which is fetched if it is not there. Raises UserError as `remote.fetched`."""
        path = self.index.shards[number].path
        while True:
            with held(self.folder, path.parent.name):
                if path.exists():
                    yield
                    return
            run(self._job([number], self._keep if path.parent.name in self._keep else ()))

    def expect(self, samples: np.ndarray) -> None:
        """Fetches in the background the shards of the samples that come next, int64 in their order: as many of them as
        there is room for without removing one that is needed before."""
        shards, first = np.unique(np.searchsorted(self.index.starts, samples, side="right") - 1, return_index=True)
        needed = self._fitting(shards[np.argsort(first)].tolist())
        self._keep = [self.index.shards[n].path.parent.name for n in needed]
        if any(process.poll() is None for process in self._running):
            return
        missing = [n for n in needed if not self.index.shards[n].path.exists()]
        if missing:
            self._running[:] = [start(self._job(missing, self._keep, patient=False), subprocess.DEVNULL)]

    def _fitting(self, shards: list[int]) -> list[int]:
        if self.limit is None:
            return shards
        sizes = np.cumsum([self.index.shards[n].size for n in shards])
        return shards[: int(np.searchsorted(sizes, self.limit, side="right"))]

    def _job(self, shards: Sequence[int], keep: Sequence[str] = (), *, patient: bool = True) -> Job:
        known = {self.urls[n]: self.index.shards[n].sha256 for n in shards}
        return Job(list(known), str(self.folder), limit=self.limit, known=known, keep=keep, patient=patient)


def _stop(running: list[subprocess.Popen[str]]) -> None:
    for process in running:
        process.kill()
        process.wait()
