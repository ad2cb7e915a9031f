"""Two processes as one for losses of samples: LoRA with dropout on a denoiser, its batch in two pieces."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain import cli
from mmtrain.data.shards import ShardWriter, encode_webp
from tests.launch.test_ranks import FULL, TWO, losses, weights

STEPS = 50 if FULL else 2
RUNS = {"ddp": ["trainer=ddp", *TWO, "trainer.accumulate=2"], "fsdp": ["trainer=fsdp", *TWO, "trainer.accumulate=2"]}


def train(sd: Path, shards: Path, runs: Path, *more: str) -> Path:
    """The folder of a run that is done."""
    small = ["dataset.num_frames=1", "trainer.threads=1", "trainer.batch_size=4", "trainer.log_every=1"]
    given = ["cache=null", "logger=null", f"dataset.shards={shards}", f"backbone.path={sd}", f"folder={runs}"]
    how = [f"trainer.steps={STEPS}", "adapters.style.dropout=0.2", *more]
    assert cli.main(["train", "sd_lora", *small, *given, *how]) == 0
    [run] = runs.iterdir()
    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoising") / "shards"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 1, 32, 32, 3), dtype=np.uint8)
    with ShardWriter(folder, max_samples=3) as writer:
        for i, frames in enumerate(pixels):
            facts = b'{"fps": 25, "num_frames": 1}'
            writer.write(f"x{i}", {"webp": encode_webp(frames, 25.0), "txt": b"a red circle", "json": facts})
    return folder


@pytest.fixture(scope="module")
def alone(shards: Path, tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_sd, shards, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("strategy", RUNS if FULL else ["fsdp"])
def test_two_ranks_in_pieces_equal_one(strategy: str, shards: Path, tiny_sd: Path, alone: Path, tmp_path: Path):
    run = train(tiny_sd, shards, tmp_path, *RUNS[strategy])
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    far = max(abs(a / b - 1) for a, b in zip(losses(run), losses(alone), strict=True))
    ours, theirs = weights(run), weights(alone)
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
    apart = torch.cat([(ours[key] - theirs[key]).flatten() for key in theirs]).norm()
    size = torch.cat([tensor.flatten() for tensor in theirs.values()]).norm()
    assert apart < 1e-4 * size
    if FULL:
        print(f"\n{strategy}: {STEPS} steps by two ranks, losses to {far:.1e}, weights to {apart / size:.1e}")
