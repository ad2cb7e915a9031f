"""Law of ranks: what a step computes does not depend on how many processes share its batch, nor in how many pieces.

Real gloo processes with DDP against one process with one batch, in float64, with dropout at work.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmtrain.rng import Rng
from tests.laws import pairs
from tests.laws.ranks import trained
from tests.parity.peers import open_clip_losses

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("contrastive", "siglip")
GRADIENTS = [(name, world, pieces) for name in BOTH for world, pieces in ((2, 1), (2, 2), (2, 4), (4, 1), (4, 2))]
TRAINED = [("contrastive", 2), ("apart", 2), ("apart", 4)]


def case(kind: str, objective: str, world: int, pieces: int = 1) -> dict[str, Any]:
    name = f"{kind}-{objective}-{world}-{pieces}"
    return {"kind": kind, "objective": objective, "world": world, "pieces": pieces, "name": name}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """The folder in which real ranks left what they computed."""
    folder = tmp_path_factory.mktemp("ranks")
    plan = [case("gradients", *rest) for rest in GRADIENTS] + [
        case("trained", name, 2, pieces) for name, pieces in TRAINED
    ]
    if open_clip_losses() is not None:
        plan += [case("peer", name, 2) for name in BOTH]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "tests.laws.ranks", str(folder), str(tiny_clip)]
    done = subprocess.run(launch, cwd=ROOT, env=env, input=json.dumps(plan), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(tiny_clip: Path) -> dict[str, dict[str, Tensor]]:
    """One process, one batch, one piece."""
    results = {}
    for name in BOTH:
        model, adapters = pairs.towers(tiny_clip, name)
        batch = pairs.pairs()
        losses = pairs.objective(name)(model, batch, Rng(3, 5, batch.positions)).per_sample
        losses.mean().backward()
        results[name] = {**pairs.taken(adapters), "losses": losses.detach()}
    return results


@pytest.mark.parametrize(("name", "world", "pieces"), GRADIENTS)
def test_every_gradient_is_that_of_one_process(
    name: str, world: int, pieces: int, found: Path, whole: dict[str, dict[str, Tensor]]
):
    got, wanted = load_file(found / f"gradients-{name}-{world}-{pieces}.safetensors"), whole[name]
    assert got.keys() == wanted.keys()
    assert "temperature/log_scale" in wanted
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-10, msg=key)


@pytest.mark.parametrize(("name", "pieces"), TRAINED)
def test_three_steps_through_lightning_leave_the_same_weights(name: str, pieces: int, found: Path, tiny_clip: Path):
    got = load_file(found / f"trained-{name}-2-{pieces}.safetensors")
    wanted = trained(str(tiny_clip), case("trained", name, 1))
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-10, msg=key)


@pytest.mark.skipif(open_clip_losses() is None, reason="open_clip is not installed: OPEN_CLIP=<folder>")
@pytest.mark.parametrize("name", BOTH)
def test_on_two_ranks_open_clip_with_both_flags_agrees(name: str, found: Path):
    differences = load_file(found / f"peer-{name}-2-1.safetensors")
    assert float(differences.pop("first").abs().max()) > 1e-3
    assert max(float(value.abs().max()) for value in differences.values()) < 1e-10
