"""A run that is asked to stop: saved behind the step that was under way; its status says whether to try again."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmtrain import cli
from mmtrain.run import checkpoints
from mmtrain.train.callbacks import Log
from mmtrain.train.stop import Stop
from tests import tiny

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def send(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Signals that come while a step is under way."""
    ours = Log.on_train_batch_end

    def wrapped(self: Log, trainer: Any, module: Any, *others: Any) -> None:
        if module.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        ours(self, trainer, module, *others)

    monkeypatch.setattr(Log, "on_train_batch_end", wrapped)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_a_signal_saves_and_ends_with_its_status(
    number: int,
    status: int,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    send(monkeypatch, 3, number)
    assert cli.main(tiny.words(shards, tmp_path, "--resume", "auto")) == status
    [run] = tmp_path.iterdir()
    newest = checkpoints.newest(run / "checkpoints")
    assert checkpoints.step_of(newest) in (3, 4)  # a signal is heard at the next line of Python
    told = capfd.readouterr().err
    assert f"mmtrain: stopped by {signal.Signals(number).name} behind step" in told
    assert "Traceback" not in told
    monkeypatch.undo()
    assert cli.main(tiny.words(shards, tmp_path, "--resume", "auto")) == 0  # as a scheduler starts it again
    assert checkpoints.newest(run / "checkpoints").name == "step-00000006"
    whole = tiny.train(shards, tmp_path / "whole")
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    last = "checkpoints/step-00000006/manifest.json"
    assert (run / last).read_bytes() == (whole / last).read_bytes()


def test_a_second_interrupt_stops_at_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    class Gone(BaseException):
        pass

    def leave(status: int) -> None:
        raise Gone(status)

    monkeypatch.setattr(os, "_exit", leave)
    send(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Gone, match="130"):
        cli.main(tiny.words(shards, tmp_path))
    [run] = tmp_path.iterdir()
    assert checkpoints.newest(run / "checkpoints").name == "step-00000002"
    assert "at once" in capfd.readouterr().err


def test_a_worker_with_the_handler_dies_as_it_should():
    stop = Stop()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, stop._came)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
