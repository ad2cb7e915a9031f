"""Work on many shards in several processes. What the work is, this file does not know.

The jobs are dealt out beforehand, and each process has a pipe of its own to the parent. If the parent is killed, the
processes end at once instead of working on unseen.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from mmtrain.data.claim import Claim
from mmtrain.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], None]
"""Called with how many samples were done since the last call."""


def spread(
    work: Callable[[Job, Tick], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    tick: Tick,
    claim: Claim | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yields (number of the job, ``work(job, tick)``) as they are done; in this process if one worker is enough.

    Args:
        work: a function of a module's top level; it and its jobs are pickled.
        tick: called in this process.
        claim: on the output that the workers write to; they hold it as long as they live.

    Raises:
        Whatever ``work`` raises; UserError if a worker is killed. The other workers are stopped then.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from ((number, work(job, tick)) for number, job in enumerate(jobs))
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmtrain.data.decode"])  # what takes long to import is imported once
    running: dict[Connection, BaseProcess] = {}
    try:
        for first in range(min(workers, len(jobs))):
            ours, theirs = context.Pipe(duplex=False)
            mine = [(n, jobs[n]) for n in range(first, len(jobs), workers)]
            running[ours] = context.Process(target=_serve, args=(theirs, work, mine, claim), daemon=True)
            running[ours].start()
            theirs.close()
        yield from _gather(running, tick)
    finally:
        for pipe, process in running.items():
            process.terminate()
            process.join()
            pipe.close()


def _serve(pipe: Connection, work: Callable[[Any, Tick], Any], jobs: list[tuple[int, Any]], claim: int | None) -> None:
    """The loop of a worker: ("tick", count), ("done", (number, result)), at last ("raised", error) or ("end", None)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for number, job in jobs:
            pipe.send(("done", (number, work(job, lambda count: pipe.send(("tick", count))))))
        pipe.send(("end", None))
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the parent is gone, or goes and says so itself
    except Exception as why:
        pipe.send(("raised", why))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # readable when it is gone, however it went
    os._exit(1)


def _gather(running: dict[Connection, BaseProcess], tick: Tick) -> Iterator[tuple[int, Any]]:
    open_pipes: list[Any] = list(running)
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                kind, what = pipe.recv()
            except EOFError:
                running[pipe].join()
                came = f"was killed (exit code {running[pipe].exitcode})"
                fix = "look whether memory ran out; use fewer workers, and start again: whole shards are kept"
                raise UserError("a worker process", came, "its shards", fix) from None
            if kind == "tick":
                tick(what)
            elif kind == "done":
                yield what
            elif kind == "raised":
                raise what
            else:
                open_pipes.remove(pipe)
