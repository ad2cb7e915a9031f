"""Laws of how a model is sampled by whoever does not say: as its folder says, else as the base's does, else as usual;
what was asked goes before all of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain import artifact, cli, config
from mmtrain.backbone import usual
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.errors import UserError, UserErrors
from mmtrain.evaluate.arms import FirstFrames, Settings, arms
from mmtrain.evaluate.cases import heldout
from mmtrain.export.diffusers import export
from mmtrain.sample.generate import images
from tests.laws.test_export import run_of

SAID = {"num_inference_steps": 3, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def exported(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose recipe says how it is sampled."""
    paths = ["dataset.folder=unread", f"backbone.path={tiny_sd}", *(f"sampling.{k}={v}" for k, v in SAID.items())]
    run = run_of(tmp_path_factory.mktemp("runs"), "brand_style", *paths)
    return export(str(run.path), tmp_path_factory.mktemp("exports") / "quick")


def drawn(backbone: Any, **how: Any) -> np.ndarray:
    return images(backbone=backbone, prompts=["a red circle"], seeds=[1], height=64, width=64, **how)


def test_the_folders_word_then_the_bases_then_the_usual_one(exported: Path, tiny_sd: Path, tmp_path: Path):
    assert usual.read(exported) == SAID
    assert np.array_equal(drawn(artifact.load(exported)[0]), drawn(artifact.load(exported)[0], **SAID))
    assert not np.array_equal(drawn(artifact.load(exported)[0]), drawn(artifact.load(exported)[0], guidance_scale=7.5))
    base = shutil.copytree(tiny_sd, tmp_path / "base")
    plain = drawn(StableDiffusion(path=str(base)))
    assert np.array_equal(plain, drawn(StableDiffusion(path=str(base)), guidance_scale=7.5, num_inference_steps=25))
    usual.write({"guidance_scale": 2}, base)
    quiet = StableDiffusion(path=str(base))
    assert np.array_equal(drawn(quiet), drawn(quiet, guidance_scale=2.0, num_inference_steps=25))
    assert not np.array_equal(drawn(quiet), plain)


def test_base_and_adapted_are_compared_alike(exported: Path):
    assert usual.of(artifact.base(exported)) == {}
    asked = Settings(first_frame="nobody", guidance_scale=4.0).of(exported)
    assert (asked.num_inference_steps, asked.guidance_scale) == (3, 4.0)
    assert FirstFrames(Settings(first_frame=str(exported))).how == SAID
    assert FirstFrames(Settings(first_frame=str(exported), first_frame_guidance=5.0)).how == SAID | {
        "guidance_scale": 5.0
    }


def test_a_noise_level_to_guide_above_is_asked_of_stable_video_diffusion_alone(exported: Path):
    short = [replace(case, prompt="a red circle") for case in heldout(count=1, two_objects=0, seed=0)]
    with pytest.raises(UserError, match=r"--guidance-above: 5 for a StableDiffusion; a Stable Video Diffusion"):
        next(arms(exported, Settings(first_frame="nobody", guidance_above=5.0), short))


def test_the_verb_says_what_the_folder_brought(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sample", str(exported), "--prompt", "a red circle", "--guidance-scale", "2"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "sampled as the model's own folder says: num inference steps 3\n" in said.err
    assert "num_inference_steps=3, guidance_scale=1.0" in (exported / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "unreadable"),
        ("[]", "a list"),
        ('{"steps": 3}', "no such key"),
        ('{"num_inference_steps": 2.5}', "a whole number above 0"),
        ('{"num_inference_steps": Infinity}', "a whole number above 0"),
        ('{"guidance_scale": "much"}', "a number"),
        ('{"guidance_scale": Infinity}', "a number"),
    ],
)
def test_another_word_is_refused(text: str, why: str, tmp_path: Path):
    (tmp_path / usual.FILE).write_text(text)
    with pytest.raises(UserError, match=why):
        usual.read(tmp_path)


def test_a_recipes_word_is_checked_and_changes_no_identity(tmp_path: Path):
    with pytest.raises(UserErrors, match=r"sampling.num_inference_steps: 0; a whole number above 0"):
        config.checked(config.compose("distill_steps", ["sampling.num_inference_steps=0"]))
    usual.write({"num_inference_steps": None, "guidance_scale": None}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert json.loads((Path(config.shipped("sd")) / usual.FILE).read_text())["guidance_scale"] < 4
