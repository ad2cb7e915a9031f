"""Laws of LoRA's layouts: the library that will use one opens it on the base, accounts for every tensor, and gives what
the trained network gives; what is not so is not kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmtrain import artifact
from mmtrain.errors import UserError
from mmtrain.export.diffusers import export
from mmtrain.export.lora import COMFYUI, DIFFUSERS, PEFT, Layout, write_lora
from mmtrain.export.prove_lora import prove_lora
from mmtrain.run import Run
from tests.laws.test_export import SMALLER, run_of

FILES: dict[Layout, str] = {"peft": PEFT, "diffusers": DIFFUSERS, "comfyui": COMFYUI}


@pytest.fixture(scope="module")
def sd_run(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    paths = [
        "dataset.folder=unread",
        "dataset.caption=in zwx style",
        f"backbone.path={tiny_sd}",
        "adapters.style.rank=2",
    ]
    return run_of(tmp_path_factory.mktemp("runs"), "brand_style", *paths, "adapters.style.alpha=3")


@pytest.fixture(scope="module")
def svd_run(tiny_svd: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    paths = [f"backbone.path={tiny_svd}", f"backbone.text_path={tiny_clip}"]
    return run_of(tmp_path_factory.mktemp("runs"), "svd_text_bridge", *paths, *SMALLER)


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_is_proved_and_says_where_it_comes_from(
    layout: Layout, sd_run: Run, tmp_path: Path, request: pytest.FixtureRequest
):
    if layout != "comfyui":
        request.getfixturevalue("here")
    folder = export(str(sd_run.path), tmp_path / "made", "fp32", layout=layout)
    with safe_open(folder / FILES[layout], "pt") as file:
        header = file.metadata()
    assert header["mmtrain.run_id"] == sd_run.run_id
    assert header["mmtrain.base_digest"] == sd_run.manifest["bases"]["backbone"]["digest"]
    assert header["mmtrain.caption"] == "in zwx style"
    card = (folder / "README.md").read_text()
    assert f"by the library of the layout {layout}: no key missing" in card
    assert not (folder / "unet").exists()
    assert artifact.read(folder)["run_id"] == sd_run.run_id


def test_a_motion_lora_for_peft(svd_run: Run, tmp_path: Path, here: None):
    folder = export(str(svd_run.path), tmp_path / "made", "fp32", layout="peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 32)
    with pytest.raises(UserError, match="a family whose pipeline loads LoRAs"):
        export(str(svd_run.path), tmp_path / "other", "fp32", layout="comfyui")
    assert not (tmp_path / "other").exists()


def test_comfyui_names_and_shapes(sd_run: Run, tmp_path: Path):
    backbone, adapters = artifact.of_run(sd_run)
    made = load_file(write_lora(backbone, adapters, "comfyui", tmp_path, {}, torch.float32))
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    key = f"lora_unet_{layer.replace('.', '_')}"
    width = backbone.unet.get_submodule(layer).base_layer.weight.shape
    assert made[f"{key}.lora_down.weight"].shape == (2, width[1])
    assert made[f"{key}.lora_up.weight"].shape == (width[0], 2)
    assert made[f"{key}.alpha"] == 3


@pytest.mark.parametrize("layout", FILES)
def test_a_lora_on_the_whole_network(layout: Layout, tiny_sd: Path, tmp_path: Path, request: pytest.FixtureRequest):
    """Samplers, first and last convolutions and time embeddings among its layers, as in `make brand`."""
    if layout != "comfyui":
        request.getfixturevalue("here")
    words = [
        "dataset.folder=unread",
        f"backbone.path={tiny_sd}",
        "adapters.style.rank=2",
        "adapters.style.targets=whole",
    ]
    run = run_of(tmp_path / "runs", "brand_style", *words)
    folder = export(str(run.path), tmp_path / "made", "fp32", layout=layout)
    layers = " ".join(load_file(folder / FILES[layout]))
    assert all(name in layers for name in ("conv_in", "conv_out", "samplers", "time_emb_proj", "conv_shortcut"))


def test_a_file_that_lacks_a_key_or_holds_another_value_is_refused(sd_run: Run, tmp_path: Path, here: None):
    backbone, adapters = artifact.of_run(sd_run)
    file = write_lora(backbone, adapters, "peft", tmp_path, {}, torch.float32)
    whole = load_file(file)
    lost = dict(list(whole.items())[1:])
    save_file(lost, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="tensors in the file"):
        prove_lora(backbone, file, "peft", torch.float32)
    save_file({name: weight * 1.05 for name, weight in whole.items()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="deviations away"):
        prove_lora(backbone, file, "peft", torch.float32)
