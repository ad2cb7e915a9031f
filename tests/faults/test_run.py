"""What a machine does to a run: the disk, its folder, numbers, memory, a worker, a logger. One clear error each, and
the last good checkpoint is intact."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain import cli
from mmtrain.run import checkpoints
from mmtrain.train import checkpoint
from mmtrain.train.callbacks import Log
from mmtrain.train.module import TrainModule
from tests import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("data") / "world")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of memory."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def last_good(folder: Path) -> str:
    [run] = folder.iterdir()
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []
    return checkpoints.newest(run / "checkpoints", say=pytest.fail).name


def test_a_disk_that_is_full(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Room for the first checkpoint and not for the second; then there is room, and the run goes on."""
    with mounted(tmp_path / "disk", "size=16m") as disk:
        tiny.train(shards, disk / "sized", "trainer.steps=2")
        used = 16 * 2**20 - shutil.disk_usage(disk).free
        shutil.rmtree(disk / "sized")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(16 * 2**20 - int(1.5 * used)))
        capsys.readouterr()
        assert cli.main(tiny.words(shards, disk / "runs")) == 1
        told = capsys.readouterr().err
        assert "No space left on device" in told
        assert "the last good one is step-00000002" in told
        assert "--resume" in told
        assert "Traceback" not in told
        assert last_good(disk / "runs") == "step-00000002"
        ballast.unlink()
        assert cli.main(["train", "--resume", str(next((disk / "runs").iterdir()))]) == 0
        assert last_good(disk / "runs") == "step-00000006"


def test_a_file_that_may_not_grow(shards: Path, tmp_path: Path):
    """The same where nothing can be mounted: the system refuses to write more of a file, as a quota does."""
    code = "import resource, signal, sys; from mmtrain import cli; from mmtrain.run import record; "
    code += "record.git_state = lambda: None; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); sys.exit(cli.main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *tiny.words(shards, tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "there is none yet" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        assert cli.main(tiny.words(shards, disk / "runs")) == 2
        assert "Read-only file system); a folder to write in; set folder=" in capsys.readouterr().err


def test_values_that_an_objective_refuses_leave_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(tiny.words(shards, tmp_path / "runs", "objective.tile=0")) == 2
    assert "objective.tile: 0; at least 1 row" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_a_number_stops_with_the_samples(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ours = TrainModule.loss

    def poisoned(self: TrainModule, batch: Any) -> Any:
        loss = ours(self, batch)
        if self.step == 4:
            loss.per_sample = loss.per_sample * float("nan")
        return loss

    monkeypatch.setattr(TrainModule, "loss", poisoned)
    assert cli.main(tiny.words(shards, tmp_path, "trainer.log_every=100")) == 1
    told = capsys.readouterr().err
    assert "step 5: the loss is nan on the samples " in told
    assert last_good(tmp_path) == "step-00000004"
    [run] = tmp_path.iterdir()
    assert "the loss is nan" in (run / "log.txt").read_text()


def test_memory_that_runs_out_comes_with_advice(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def greedy(self: TrainModule, batch: Any) -> Any:
        return torch.empty(1 << 60)

    monkeypatch.setattr(TrainModule, "loss", greedy)
    assert cli.main(tiny.words(shards, tmp_path)) == 1
    told = capsys.readouterr().err
    assert told.count("mmtrain: memory: ") == 1
    assert "trainer.accumulate=2 or more" in told
    assert "Traceback" not in told


def test_a_worker_that_is_killed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ours = Log.on_train_batch_end

    def kill(self: Log, trainer: Any, module: Any, *others: Any) -> None:
        ours(self, trainer, module, *others)
        if module.step == 3:
            for worker in torch.multiprocessing.active_children():
                os.kill(int(worker.pid or 0), signal.SIGKILL)

    monkeypatch.setattr(Log, "on_train_batch_end", kill)
    words = tiny.words(shards, tmp_path, "trainer.num_workers=1", "trainer.steps=40", "trainer.keep=99")
    assert cli.main(words) in (1, 2)
    told = capsys.readouterr().err
    assert "data workers (1): a worker died" in told
    assert "Traceback" not in told
    assert checkpoints.step_of(checkpoints.newest(next(tmp_path.iterdir()) / "checkpoints")) >= 2


def test_a_logger_that_cannot_be_reached_is_named_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from pytorch_lightning.loggers import TensorBoardLogger

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", unreachable)
    run = tiny.train(shards, tmp_path, "logger=local")
    told = capsys.readouterr().err
    assert told.count("logger.tensorboard is left out: ConnectionError: no route to host") == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 7


def test_what_loggers_write_lies_under_events(shards: Path, tmp_path: Path):
    run = tiny.train(shards, tmp_path, "logger=local", "trainer.steps=2")
    assert {path.name for path in run.iterdir()} >= {"manifest.json", "metrics.csv", "log.txt", "events", "checkpoints"}
    assert any(path.name.startswith("events.") for path in (run / "events").iterdir())


def test_the_write_of_a_checkpoint_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mmtrain.errors import Failure

    held = {"weights": {"a": torch.zeros(3)}}
    checkpoint.write(tmp_path, held, {"step": 1})

    def full(path: Path, payload: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(Failure, match=r"step-00000002: not written \(No space left .* step-00000001"):
        checkpoint.write(tmp_path, held, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoints.fault(tmp_path / "step-00000001") is None
