"""Laws of networks held in eight bits: how far weights and pictures are from those in 32, and what is saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from mmtrain import cli
from mmtrain.adapter.injected import merged
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.sample.generate import VideoSampler, images
from mmtrain.sample.int8 import hold


def adapted(folder: Path) -> StableDiffusion:
    model = StableDiffusion(path=str(folder))
    lora = LoRA(rank=2, alpha=2, targets="with-convolutions")
    lora.attach(model)
    for i, weight in enumerate(lora.named_weights().values()):
        weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    return model


def test_a_weight_is_the_nearest_level_of_its_channel(tiny_sd: Path):
    model = adapted(tiny_sd)
    exact = merged(model.unet)
    before, after = hold(model)
    held = {n: m for n, m in model.unet.named_modules() if parametrize.is_parametrized(m)}
    plain = {n for n, m in exact.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert set(held) == plain
    for name, layer in held.items():
        wanted = exact.get_submodule(name).weight
        most = wanted.abs().flatten(1).amax(1).view(-1, *[1] * (wanted.ndim - 1))
        assert bool(((layer.weight - wanted).abs() <= most / 254 * 1.0001).all()), name
        assert layer.parametrizations.weight.original0.dtype == torch.int8
        assert torch.equal(layer.bias, exact.get_submodule(name).bias) if layer.bias is not None else True
    inside = sum(exact.get_submodule(n).weight.numel() for n in plain)
    rows = sum(len(exact.get_submodule(n).weight) for n in plain)
    assert before == 4 * sum(w.numel() for w in exact.parameters())
    assert before - after == 3 * inside - 4 * rows  # a byte for four, and a scale for each channel


def test_predictions_are_those_of_32_bits_but_for_little_and_pipelines_use_them(tiny_sd: Path, tiny_svd: Path):
    draw = torch.Generator().manual_seed(0)
    model, noisy, text = (
        adapted(tiny_sd),
        torch.randn(1, 4, 8, 8, generator=draw),
        torch.randn(1, 3, 16, generator=draw),
    )
    how = {"prompts": ["a red circle"], "seeds": [1], "num_inference_steps": 1}
    with torch.no_grad():
        exact, drawn = model.unet(noisy, 500, text).sample, images(backbone=model, **how)
        hold(model)
        away = model.unet(noisy, 500, text).sample - exact
    assert 0 < float(away.norm() / exact.norm()) < 0.02
    assert not np.array_equal(images(backbone=model, **how), drawn)
    video = StableVideoDiffusion(path=str(tiny_svd))
    clip = {"images": np.full((1, 64, 64, 3), 90, np.uint8), "seeds": [1], "num_inference_steps": 1}
    before = VideoSampler(backbone=video).video(**clip)
    hold(video)
    assert 0 < np.abs(VideoSampler(backbone=video).video(**clip).astype(int) - before).mean() < 4


def test_a_channel_of_zeros_stays_zero(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    model.unet.conv_in.weight.data[3] = 0
    hold(model)
    assert not model.unet.conv_in.weight[3].any()
    assert model.unet.conv_in.weight[2].any()


def test_the_verbs_take_it(tiny_sd: Path, styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sample", str(tiny_sd), "--prompt", "a red circle", "--steps", "1", "--no-watermark"]
    assert cli.main([*words, "--int8", "--out", str(tmp_path / "held")]) == 0
    assert "network held in 0." in capsys.readouterr().err
    evaluate = ["evaluate", str(styled), "--count", "1", "--two-objects", "0", "--steps", "1", "--strength", "0"]
    (tmp_path / "p.txt").write_text("a red circle\n")
    evaluate += ["--prompts-from", str(tmp_path / "p.txt"), "--metrics", "forgetting", "--words", "{prompt} on black"]
    gate = ["--neutral", "--gate", "pixels forgotten <= 0"]
    assert cli.main([*evaluate, *gate, "--out", str(tmp_path / "same")]) == 0
    assert cli.main([*evaluate, *gate, "--int8", "--out", str(tmp_path / "other")]) == 1
