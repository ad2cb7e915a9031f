"""Arms measured in turn, and what is made of their numbers: min – median – max, ratios round by round, a file.

Each arm is a process of its own, forked before any work, so that what one asks of the allocator does not help the
other; one arm runs at a time, with one thread. An arm is a loop that calls its `Gate` behind every step: the gate holds
it still while the others have their turn, so that whole programs, ours or another's, can be measured step by step.
Wall time is what a user waits; processor time does not count what else the machine does. Both are kept.
"""

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Seconds:
    """Of one unit of work (a step, a sample), a number for each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Gate:
    """Called by an arm behind each step: gives the turn away once the steps of a round are done.

    Args:
        pipe: to whoever holds the rounds.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.due, self.done = pipe, 0, 0
        self._wait()

    def __call__(self, units: float = 1) -> None:
        self.done += units
        if self.done < self.due:
            return
        spent = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.pipe.send([seconds / self.done for seconds in spent])
        self._wait()

    def _wait(self) -> None:
        order = self.pipe.recv()
        if order is None:
            os._exit(0)  # in the midst of whatever program this is
        self.due, self.done = order, 0
        self.wall, self.cpu = time.perf_counter(), time.process_time()


Arm = Callable[[Gate], None]


def rounds_asked(usual: int) -> int:
    """How many rounds: ``BENCH_ROUNDS``, or as many as usual."""
    return int(os.environ.get("BENCH_ROUNDS", usual))


def repeated(make: Callable[[], Callable[[], float | None]]) -> Arm:
    """An arm of a piece of work that can be done again and again; it returns its units, None being one."""

    def arm(gate: Gate) -> None:
        work = make()
        while True:
            gate(work() or 1)

    return arm


def rounds(arms: Mapping[str, Arm], *, count: int, units: float = 1, warm: float | None = None) -> dict[str, Seconds]:
    """Seconds per unit of each arm, over so many rounds in turn.

    Args:
        arms: by name.
        units: that an arm does in its turn.
        warm: before the first round, not counted; None: as many as in a turn.

    Raises:
        RuntimeError: an arm ended by itself; with what it wrote last.
    """
    context = multiprocessing.get_context("fork")
    found = {name: Seconds() for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        pipes, said = {}, {name: Path(folder) / str(i) for i, name in enumerate(arms)}
        for name, arm in arms.items():
            pipes[name], end = context.Pipe()
            context.Process(target=_child, args=(end, arm, said[name]), daemon=True).start()
            end.close()
        for turn in range(count + 1):
            for name, pipe in pipes.items():
                pipe.send(units if turn else (units if warm is None else warm))
                try:
                    wall, cpu = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"{name} ended:\n{said[name].read_text()[-3000:]}") from None
                if turn:
                    found[name].wall.append(wall)
                    found[name].cpu.append(cpu)
        for pipe in pipes.values():
            pipe.send(None)
    return found


def in_turn(ways: Mapping[str, Callable[[], float]], *, count: int) -> dict[str, Seconds]:
    """Seconds per unit of pieces of work that return their units, over rounds in turn of this very process, after one
    that is not counted. For work that shares much and asks little of the allocator."""
    found = {name: Seconds() for name in ways}
    for turn in range(count + 1):
        for name, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            units = work()
            if turn:
                found[name].wall.append((time.perf_counter() - wall) / units)
                found[name].cpu.append((time.process_time() - cpu) / units)
    return found


def _child(pipe: Any, arm: Arm, said: Path) -> None:
    import torch

    from mmtrain.train.launch import follow_parent

    follow_parent()
    with said.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    with contextlib.suppress(SystemExit):
        arm(Gate(pipe))
    os._exit(1)


# of numbers -----------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: str) -> str:
    """min – median – max."""
    return " – ".join(format(v, digits) for v in (min(values), statistics.median(values), max(values)))


def ratios(base: list[float], values: list[float]) -> list[float]:
    """How many times as fast as the base, round by round: both had the same minute of the machine."""
    return [b / v for b, v in zip(base, values, strict=True)]
