"""From the command line, each family is trained, exported with its proof, and sampled from what was written.

Short: one family. `FAMILIES_PROOF=full` (`make families-proof`) takes all.
"""

import os
from pathlib import Path

import pytest

from mmtrain import cli
from mmtrain.data.shards import write_world

SIZES = {
    "sdxl": ["dataset.num_frames=1"],
    "prior": ["dataset.num_frames=1"],
    "animatediff": ["dataset.num_frames=3", "backbone.num_frames=3"],
    "wan": ["dataset.size=16", "backbone.size=[16,16]", "backbone.num_frames=5", "dataset.num_frames=5"],
}
ADAPTERS = {"animatediff": ["adapter@adapters.style=motion_modules"]}
FAMILIES = ["sdxl", "animatediff", "wan", "prior"] if os.environ.get("FAMILIES_PROOF") == "full" else ["sdxl"]
FEW = ["trainer.steps=2", "trainer.batch_size=2", "cache=null", "dataset.stride=1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_exported_and_sampled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shards = write_world(tmp_path / "shards", split="train", count=4, seed=0)
    words = [f"backbone={name}_fresh", f"dataset.shards={shards}", *SIZES[name], *ADAPTERS.get(name, []), *FEW]
    assert cli.main(["check", "sd_lora", *words]) == 0
    assert cli.main(["train", "sd_lora", *words]) == 0
    assert cli.main(["export", "latest", "--to", "made"]) == 0
    assert (tmp_path / "made" / "model_index.json").exists()
    if name == "prior":
        return
    how = ["--steps", "1", "--height", "16", "--width", "16", "--out", "clips", "--format", "png"]
    assert cli.main(["sample", "made", "--prompt", "a red circle", *how]) == 0
    assert list((tmp_path / "clips").rglob("*.png"))
