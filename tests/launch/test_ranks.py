"""Two processes as one: the numbers of one process, whichever way the work is shared; and none outlives another."""

import csv
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtrain import cli
from mmtrain.run import Run, checkpoints
from tests import tiny

FULL = os.environ.get("RESUME_PROOF") == "full"  # make resume-proof
STEPS = 50 if FULL else 6
LONG = [f"trainer.steps={STEPS}", "trainer.checkpoint_every=25" if FULL else "trainer.checkpoint_every=2"]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
UNSEEN = "k_proj.bias"
"""A softmax does not see it: its gradient is zero but for rounding, of which Adam makes whole steps."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.train(shards, tmp_path_factory.mktemp("alone"), *LONG)


def losses(run: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((run / "metrics.csv").open())]


def weights(run: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(checkpoints.newest(run / "checkpoints") / f"{name}.safetensors")


def assert_as_one(run: Path, alone: Path) -> None:
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    for name in ("weights", "ema"):
        ours, theirs = weights(run, name), weights(alone, name)
        assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
        seen = [key for key in theirs if not key.endswith(UNSEEN)]
        apart = torch.cat([(ours[key] - theirs[key]).flatten() for key in seen]).norm()
        size = torch.cat([theirs[key].flatten() for key in seen]).norm()
        assert apart < 1e-6 * size


@contextmanager
def once_reached(folder: Path, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Does something as soon as the log holds a step."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if any(len(file.read_text().splitlines()) > step for file in folder.glob("*/metrics.csv")):
                act()
                return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def rank_process(index: int) -> int:
    """The process of a rank that this one has started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "environ").read_bytes().split(b"\0")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == os.getpid() and f"RANK={index}".encode() in told:
            return int(place.name)
    raise AssertionError(f"no process of rank {index}")


def test_two_ranks_stopped_and_gone_on_with_equal_one(
    shards: Path, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    words = tiny.words(shards, tmp_path, "trainer=ddp", *LONG, *TWO, "--resume", "auto")
    with once_reached(tmp_path, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert cli.main(words) == 75
    [run] = tmp_path.iterdir()
    assert "mmtrain: stopped by SIGTERM behind step" in capfd.readouterr().err
    assert Run.open(run).manifest["ranks"] == 2
    assert len(losses(run)) < STEPS
    assert cli.main(words) == 0
    assert_as_one(run, alone)


def test_weights_in_pieces_equal_whole_ones_and_are_saved_whole(shards: Path, alone: Path, tmp_path: Path):
    run = tiny.train(shards, tmp_path, "trainer=fsdp", *LONG, *TWO)
    assert_as_one(run, alone)
    shapes = {name: tensor.shape for name, tensor in weights(alone, "optimizer").items()}
    assert {name: tensor.shape for name, tensor in weights(run, "optimizer").items()} == shapes


def test_a_rank_that_dies_stops_the_others(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Within launch.GRACE_SECONDS on one machine; what was saved stays."""
    words = tiny.words(shards, tmp_path, "trainer=ddp", *TWO, "trainer.steps=4000")
    with once_reached(tmp_path, 3, lambda: os.kill(rank_process(1), signal.SIGKILL)):
        assert cli.main(words) == 1
    told = capfd.readouterr().err
    assert "rank 1: ended with status -9" in told or "ranks: another process ended" in told
    with pytest.raises(AssertionError, match="no process"):
        rank_process(0)
    [run] = tmp_path.iterdir()
    assert checkpoints.step_of(checkpoints.newest(run / "checkpoints")) >= 2


def test_as_many_as_the_config_says(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(tiny.words(shards, tmp_path, "trainer=ddp", *TWO)) == 2
    assert "launch: 3 processes were started; trainer.devices × trainer.num_nodes = 2 × 1" in capfd.readouterr().err


def test_more_machines_need_a_launcher(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert cli.main(tiny.words(shards, tmp_path, "trainer=ddp", *TWO, "trainer.num_nodes=2")) == 2
    assert "torchrun or srun" in capfd.readouterr().err
