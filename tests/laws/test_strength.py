"""Laws of strength: 0 is the base and 1 is as trained, bit for bit; what lies between is linear; adapters add up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain import artifact
from mmtrain.adapter.injected import merged
from mmtrain.errors import UserError
from mmtrain.sample import generate
from mmtrain.sample.generate import images
from mmtrain.sample.strength import opened
from tests.laws.test_export import run_of


@pytest.fixture(scope="module")
def styles(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two artifacts of image LoRAs on one base."""
    made = []
    for rank in (2, 3):
        folder = tmp_path_factory.mktemp("styles") / f"rank-{rank}"
        folder.mkdir()
        paths = ["dataset.folder=unread", f"backbone.path={tiny_sd}", f"adapters.style.rank={rank}"]
        run = run_of(tmp_path_factory.mktemp("runs"), "brand_style", *paths)
        artifact.write(run, artifact.of_run(run)[0], folder)
        made.append(folder)
    return made


def weights(where: Path, **how: object) -> dict[str, torch.Tensor]:
    backbone, _ = opened(str(where), **how)  # type: ignore[arg-type]
    return dict(merged(backbone.network).state_dict())


def test_nothing_one_half_and_several(styles: list[Path]):
    first, second = styles
    base = artifact.base(first).network.state_dict()
    one, other = weights(first), weights(second)
    none, half = weights(first, strength=0.0), weights(first, strength=0.5)
    both = weights(first, strength=0.5, mix={str(second): 2.0})
    assert all(torch.equal(none[name], weight) for name, weight in base.items())
    moved = [name for name in base if not torch.equal(one[name], base[name])]
    assert moved
    for name, weight in base.items():
        added, more = one[name] - weight, other[name] - weight
        torch.testing.assert_close(half[name], weight + 0.5 * added)
        torch.testing.assert_close(both[name], weight + 0.5 * added + 2 * more)


def test_adapters_are_folded_once_whatever_is_sampled(styles: list[Path], monkeypatch: pytest.MonkeyPatch):
    """Folding makes a copy of the network, which costs as much as several of its passes."""
    how: dict[str, Any] = {"prompts": ["a red circle"], "seeds": [1], "num_inference_steps": 1}
    live = images(backbone=artifact.load(styles[0])[0], **how)
    calls: list[Any] = []
    monkeypatch.setattr(generate, "merged", lambda network: (calls.append(network), merged(network))[1])
    backbone, _ = opened(str(styles[0]))
    made = [images(backbone=backbone, **how) for _ in range(2)]
    assert len(calls) == 1
    assert all((each == live).all() for each in made)


def test_the_facts_tell_the_strengths(styles: list[Path]):
    _, facts = opened(str(styles[0]), strength=0.5, mix={str(styles[1]): 2.0})
    assert facts["strengths"] == "0.5 rank-2 + 2 rank-3"


def test_adapters_of_two_bases_are_not_mixed(styles: list[Path], tmp_path: Path):
    alien = tmp_path / "alien"
    shutil.copytree(styles[1], alien)
    facts = json.loads((alien / "artifact.json").read_text())
    facts["base"]["digest"] = "0" * 32
    (alien / "artifact.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="mix adapters of one base"):
        opened(str(styles[0]), mix={str(alien): 1.0})
