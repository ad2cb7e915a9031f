"""A run encodes where it computes: on the accelerator, with the parts that encode and no others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain import config
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.data.cache import encode_shards
from mmtrain.data.shards import write_world
from mmtrain.train import fit
from mmtrain.train.encode import encoding, place_of
from mmtrain.train.schedule import Fit
from mmtrain.train.voice import Voice

META = torch.device("meta")


@pytest.mark.parametrize(("asked", "wanted"), [("auto", "cuda:1"), ("gpu", "cuda:1"), ("cpu", "cpu")])
def test_the_place_is_the_accelerator_at_hand(asked: Any, wanted: str, monkeypatch: pytest.MonkeyPatch):
    schedule = Fit(steps=1, batch_size=1, accelerator=asked)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    assert place_of(schedule) == torch.device(wanted)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert place_of(schedule) == torch.device("cpu")


def test_copies_of_what_encodes_stand_there_and_the_backbone_is_as_before(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    parts = dict(model.named_children())
    with encoding(model, META) as encode:
        assert encode(torch.zeros(1, 1, 3, 64, 64))["latents"].device == META
        assert model.vae.device == META
        assert {model.unet.device.type, model.text_encoder.device.type} == {"cpu"}
    assert dict(model.named_children()) == parts
    assert model.vae.device.type == "cpu"


def test_a_run_encodes_there(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shards = write_world(tmp_path / "stills", split="train", count=2, seed=0, stills=True)
    words = [f"backbone.path={tiny_sd}", f"dataset.shards={shards}", "dataset.num_frames=1", "dataset.stride=1"]
    cfg = config.compose("sd_lora", [*words, f"cache={tmp_path / 'cache'}"])
    seen = []

    def watched(source: Any, folder: Path, *, encode: Any, **how: Any) -> Path:
        def kept(frames: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(encode(frames)["latents"].device)
            return {"latents": torch.zeros(len(frames), 1)}

        return encode_shards(source, folder, encode=kept, **how)

    monkeypatch.setattr(fit, "encode_shards", watched)
    monkeypatch.setattr(fit, "place_of", lambda schedule: META)
    model, schedule = StableDiffusion(path=str(tiny_sd)), config.build(cfg.trainer)
    fit._encoded(cfg, config.build(cfg.dataset), model, schedule, Voice())
    assert seen == [META]
    assert model.vae.device.type == "cpu"
