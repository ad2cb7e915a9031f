"""How far an evaluation is: a bar on a terminal, else a line every tenth of the way."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts clips; use it in a ``with`` block.

    Args:
        total: clips to come.
    """

    def __init__(self, total: int) -> None:
        self.what, self.clips, self.made, self.total, self.tenth = "", 0, 0, total, 0
        self.started = time.perf_counter()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("left"))
        self.bar = Bar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task("evaluate", total=self.total)
        return self

    def now(self, what: str, clips: int) -> None:
        """Say what is being made, and how many clips at once."""
        self.what, self.clips = what, clips
        self.bar.update(self.task, description=what)

    def within(self, step: int, steps: int) -> None:
        """Say how far these clips are."""
        self.bar.update(self.task, completed=self.made + self.clips * step / steps)

    def done(self) -> None:
        """Say that these clips are made."""
        self.made += self.clips
        self.bar.update(self.task, completed=self.made)
        if self.bar.disable and self.made * 10 // self.total > self.tenth:
            self.tenth = self.made * 10 // self.total
            left = (time.perf_counter() - self.started) / self.made * (self.total - self.made)
            print(f"{self.made}/{self.total} clips: {self.what}, left {left:.0f} s", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()
