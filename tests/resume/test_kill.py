"""Law of resume: a run that is killed and resumed leaves the bytes that an uninterrupted one leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmtrain import artifact
from mmtrain.data.shards import write_world

STEPS = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "world", split="train", count=12, seed=0, shard_size=5)


def command(recipe: str, shards: Path, folder: Path, *more: str) -> list[str]:
    words = [f"dataset.shards={shards}", f"folder={folder}", f"trainer.steps={STEPS}", "trainer.batch_size=4"]
    words += ["trainer.threads=1", "trainer.checkpoint_every=2", "trainer.log_every=3", "logger=null", *more]
    return [sys.executable, "-m", "mmtrain", "train", recipe, *words]


def final(folder: Path) -> dict[str, bytes]:
    """The files that a run leaves, byte for byte; the run's id is in state.json and its log in metrics.csv."""
    run = next(folder.iterdir())
    checkpoint = artifact.newest(run / "checkpoints")
    assert json.loads((checkpoint / "state.json").read_text())["step"] == STEPS
    return {f.name: f.read_bytes() for f in [*checkpoint.iterdir(), run / "metrics.csv"]}


def kill_after_a_checkpoint(words: list[str], folder: Path, wanted: int) -> None:
    """Start a command and kill its whole process group as soon as it has saved ``wanted`` checkpoints or more."""
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(folder.glob(f"*/checkpoints/step-*{2 * wanted}"))) > 0:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.mark.parametrize("kind", ["contrastive", "denoising"])
def test_killed_twice_equals_uninterrupted(kind: str, shards: Path, tmp_path: Path, tiny_clip: Path, tiny_svd: Path):
    if kind == "contrastive":
        recipe, more = "pretrain_clip", ["trainer.ema=0.9"]
    else:
        recipe = "svd_text_bridge"
        more = [f"backbone.path={tiny_svd}", f"backbone.text_path={tiny_clip}", "dataset.num_frames=3"]
        more += [f"cache={tmp_path / 'cache'}", "adapters.bridge.width=16", "adapters.bridge.heads=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    if kind == "denoising":  # captions of the world are longer than the tiny text tower takes
        shards = short_captions(tmp_path / "short")
    subprocess.run(command(recipe, shards, whole, *more), check=True, capture_output=True)
    words = command(recipe, shards, killed, *more)
    kill_after_a_checkpoint(words, killed, 1)
    resumed = [*words, "--resume", str(next(killed.iterdir()))]
    kill_after_a_checkpoint([*resumed, "trainer.num_workers=1"], killed, 2)
    subprocess.run(resumed, check=True, capture_output=True)
    assert final(killed) == final(whole)


def short_captions(folder: Path) -> Path:
    import numpy as np

    from mmtrain.data.shards import ShardWriter, encode_webp

    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64, 3), dtype=np.uint8)
    with ShardWriter(folder, max_samples=4) as writer:
        for i, frames in enumerate(pixels):
            members = {"webp": encode_webp(frames, 25.0), "txt": b"a red circle", "json": b'{"fps":25,"num_frames":3}'}
            writer.write(f"clip-{i}", members)
    return folder


def test_another_identity_is_refused_with_its_keys(shards: Path, tmp_path: Path):
    words = command("pretrain_clip", shards, tmp_path, "trainer.steps=2")
    subprocess.run(words, check=True, capture_output=True)
    again = [*words, "optim.lr=0.5", "--resume", str(next(tmp_path.iterdir()))]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 2
    assert "optim.lr" in done.stderr
    assert "Traceback" not in done.stderr
