"""From the command line, each family is trained, exported with its proof, and sampled from what was written.

Short: one family. `FAMILIES_PROOF=full` (`make families-proof`) takes all, and the recipes on what they made and on the
shipped backbones.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtrain import cli
from mmtrain.data.shards import write_world

SIZES = {
    "sdxl": ["dataset.num_frames=1"],
    "prior": ["dataset.num_frames=1"],
    "animatediff": ["dataset.num_frames=3", "backbone.num_frames=3"],
    "wan": ["dataset.size=16", "backbone.size=[16,16]", "backbone.num_frames=5", "dataset.num_frames=5"],
}
SIZES["wan_i2v"] = SIZES["wan"]
ADAPTERS = {"animatediff": ["adapter@adapters.style=motion_modules"]}
STYLED = {"sdxl": ["dataset.num_frames=1"], "wan": ["backbone.size=[16,16]", "dataset.size=16"]}
RECIPES: dict[str, list[str]] = {
    "codec": [],
    "distill_size": ["dataset.num_frames=1"],
    "distill_steps": ["dataset.num_frames=1"],
    "fair_sd": ["dataset.num_frames=1"],
    "svd_motion_lora": ["dataset.num_frames=2"],
}
FULL = os.environ.get("FAMILIES_PROOF") == "full"
FAMILIES = ["sdxl", "animatediff", "wan", "wan_i2v", "prior"] if FULL else ["sdxl"]
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
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("first.png")
    sampled("made", "--prompt", "a red circle", *(["--image", "first.png"] if name == "wan_i2v" else []))
    if FULL and name in STYLED:
        given = [f"dataset.shards={shards}", *STYLED[name], *FEW]
        assert cli.main(["train", f"{name}_lora", "backbone.path=./made", *given]) == 0
        assert cli.main(["export", "latest", "--to", "styled"]) == 0
        sampled("styled", "--prompt", "a red circle")


@pytest.mark.skipif(not FULL, reason="in make families-proof")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_trained_exported_and_sampled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shards = write_world(tmp_path / "shards", split="train", count=4, seed=0)
    assert cli.main(["train", name, f"dataset.shards={shards}", *RECIPES[name], *FEW]) == 0
    assert cli.main(["export", "latest", "--to", "made"]) == 0
    if name == "codec":
        return
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("first.png")
    sampled("made", *(["--image", "first.png"] if name.startswith("svd") else ["--prompt", "a red circle"]))


def sampled(folder: str, *asked: str) -> None:
    how = ["--steps", "1", "--height", "16", "--width", "16", "--out", f"clips-{folder}", "--format", "png"]
    assert cli.main(["sample", folder, *asked, *how]) == 0
    assert list(Path(f"clips-{folder}").rglob("*.png"))
