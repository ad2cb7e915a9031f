"""A data worker's death is told once: torch's handler of SIGCHLD must not break into what handles it."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from mmtrain.data import stream
from mmtrain.errors import UserError


def test_no_signal_breaks_into_the_message_of_a_workers_death(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGCHLD)

    def late(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def dying(self: Any) -> Iterator[Any]:
        raise ConnectionResetError
        yield

    monkeypatch.setattr(DataLoader, "__iter__", dying)
    signal.signal(signal.SIGCHLD, late)
    try:
        with pytest.raises(UserError, match="a worker died"):
            list(stream._Loader([0])._parcels())
        signal.raise_signal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def test_a_killed_worker_is_no_hang(monkeypatch: pytest.MonkeyPatch):
    def dying(self: Any) -> Iterator[Any]:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        yield

    monkeypatch.setattr(DataLoader, "__iter__", dying)
    with pytest.raises(UserError, match="a worker died"):
        list(stream._Loader([0])._parcels())
