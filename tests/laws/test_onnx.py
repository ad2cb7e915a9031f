"""Laws of exports in ONNX: ONNX Runtime alone gives what the trained network gives, for any batch and size; what does
not is not kept."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain import artifact, cli
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.errors import UserError
from mmtrain.export.diffusers import export
from mmtrain.export.onnx import prove_onnx, write_onnx
from mmtrain.run import Run
from mmtrain.sample import onnx as running
from mmtrain.sample.generate import images
from tests.laws.test_export import PROMPT, TINY, run_of

installed = all(importlib.util.find_spec(name) for name in running.PACKAGES)
with_onnx = pytest.mark.skipif(not installed, reason="pip install -e '.[onnx]'")


@pytest.fixture(scope="module")
def sd_run(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    paths = ["dataset.folder=unread", f"backbone.path={tiny_sd}", "adapters.style.rank=2"]
    return run_of(tmp_path_factory.mktemp("runs"), "brand_style", *paths)


@pytest.fixture(scope="module")
def pictures(sd_run: Run) -> Path:
    return export(str(sd_run.path), sd_run.path.parent.parent / "pictures", layout="onnx")


@with_onnx
def test_pictures_by_onnx_runtime_are_those_of_torch(pictures: Path, sd_run: Run):
    backbone, _, _ = artifact.load(pictures)
    how: dict[str, Any] = {"prompts": [PROMPT] * 3, **TINY, "seeds": [0, 1, 2]}
    other = {**how, "width": 96}
    wanted, wide = images(backbone=backbone, **how), images(backbone=backbone, **other)
    bare = images(backbone=artifact.base(pictures), **how)
    running.use(backbone, running.found(str(pictures)))
    assert sum(weight.numel() for weight in backbone.network.parameters()) == 0
    got = images(backbone=backbone, **how).astype(int)
    assert np.abs(got - wanted).max() <= 1
    assert np.abs(got - bare).max() > 1
    assert np.abs(images(backbone=backbone, **other).astype(int) - wide).max() <= 1


@with_onnx
def test_a_file_says_what_it_takes_and_where_it_comes_from(pictures: Path, sd_run: Run):
    import onnxruntime

    session = onnxruntime.InferenceSession(pictures / "unet" / "model.onnx")
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes == {
        "sample": ["batch", 4, "height", "width"],
        "timestep": ["batch"],
        "encoder_hidden_states": ["batch", "tokens", 16],
    }
    assert session.get_modelmeta().custom_metadata_map["mmtrain.run_id"] == sd_run.run_id
    card = (pictures / "README.md").read_text()
    assert "run by ONNX Runtime in a clean process" in card
    assert "<this folder>/unet/model.onnx" in card
    own = {"README.md", "adapter.safetensors", "artifact.json", "run", "unet"}
    assert {path.name for path in pictures.iterdir()} == own


@with_onnx
def test_a_network_that_is_not_the_trained_one_is_refused(sd_run: Run, tmp_path: Path):
    trained, _ = artifact.of_run(sd_run)
    file = write_onnx(StableDiffusion(path=sd_run.cfg.backbone.path), tmp_path, {})
    with pytest.raises(UserError, match="deviations away from the trained one's"):
        prove_onnx(trained, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="ONNX Runtime does not run it"):
        prove_onnx(trained, file)


@with_onnx
def test_the_verbs(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sample", str(pictures), "--prompt", PROMPT, "--steps", "2", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "network by ONNX Runtime" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    words[-1] = str(tmp_path / "other")
    for option in (["--strength", "0.5"], ["--bits", "8"]):
        assert cli.main([*words, *option]) == 2
        assert "whose network is in ONNX" in capsys.readouterr().err
    file = pictures / "unet" / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert cli.main(words) == 2
    assert "sha256" in capsys.readouterr().err
    file.write_bytes(whole)
    assert not (tmp_path / "other").exists()


def test_without_the_extra(sd_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no onnx and no onnxscript and no onnxruntime here.*mmtrain\[onnx\]"):
        export(str(sd_run.path), tmp_path / "out", layout="onnx")
    assert list(tmp_path.iterdir()) == []


@with_onnx
def test_other_models_and_other_weights(tiny_clip: Path, sd_run: Run, tmp_path: Path):
    with pytest.raises(UserError, match="a CLIP; a Stable Diffusion"):
        write_onnx(CLIP(path=str(tiny_clip)), tmp_path, {})
    with pytest.raises(UserError, match="fp16; fp32"):
        export(str(sd_run.path), tmp_path / "out", "fp16", layout="onnx")
    assert list(tmp_path.iterdir()) == []
