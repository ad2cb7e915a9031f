"""What a run says: to the terminal, and with the time into the run's ``log.txt``."""

from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text


class Voice:
    """Says each line on stderr and keeps it for the run's log, whose folder is not known at first.

    Args:
        silent: on all ranks but the first.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.console = Console(stderr=True, highlight=False, quiet=silent)
        self.file: Path | None = None
        self.held: list[str] = []

    def __call__(self, text: str, shown: bool = True) -> None:
        """Say a line, with rich's marks in it; ``shown=False``, and plain, to the log alone."""
        if self.silent:
            return
        if shown:
            self.console.print(text, soft_wrap=True)
        plain = Text.from_markup(text).plain if shown else text
        self.held.append(f"{datetime.now():%Y-%m-%d %H:%M:%S} {plain}\n")
        self._write()

    def into(self, file: Path) -> None:
        """From now on, and what was said so far, into this file."""
        self.file = file
        self._write()

    def _write(self) -> None:
        if self.file is not None and not self.silent:
            with self.file.open("a", encoding="utf-8") as log:
                log.writelines(self.held)
            self.held.clear()
