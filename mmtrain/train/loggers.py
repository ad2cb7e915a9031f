"""The run's loggers beside its own files. One that cannot be reached is named once and left out: training goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.markup import escape

from mmtrain import config

Say = Callable[[str], None]


class Loggers:
    """Loggers of Lightning's, by name; those of a rank that has none are an empty set.

    Args:
        nodes: of the config.
        folder: where they write; made when the first of them is.
        say: told of a logger that fails.
    """

    def __init__(self, nodes: DictConfig | dict[str, Any], folder: Path, say: Say) -> None:
        self.say = say
        self.open: dict[str, Any] = {}
        for name, node in nodes.items():
            self._attempt(str(name), partial(self._build, str(name), node, folder))

    def _build(self, name: str, node: DictConfig, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.open[name] = config.build(node, save_dir=str(folder))

    def each(self, use: Callable[[Any], object]) -> None:
        """Use every logger that still works."""
        for name, logger in list(self.open.items()):
            self._attempt(name, partial(use, logger))

    def _attempt(self, name: str, use: Callable[[], object]) -> None:
        try:
            use()
        except Exception as error:  # whatever a service's client raises, a run does not end for it
            self.open.pop(name, None)
            first = (str(error).strip().splitlines() or [""])[0]
            self.say(f"logger.{name} is left out: {escape(f'{type(error).__name__}: {first}')}; training goes on")

    def close(self, status: str) -> None:
        self.each(lambda logger: logger.finalize(status))
