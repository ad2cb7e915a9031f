"""Laws of networks that sample in 16 or 8 bits: how far weights and pictures are from those in 32, what is saved."""

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
from mmtrain.sample.generate import images
from mmtrain.sample.held import Bits, hold
from mmtrain.sample.video import VideoSampler


def adapted(folder: Path) -> StableDiffusion:
    model = StableDiffusion(path=str(folder))
    lora = LoRA(rank=2, alpha=2, targets="with-convolutions")
    lora.attach(model)
    for i, weight in enumerate(lora.named_weights().values()):
        weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    return model


def stored(sampler: VideoSampler) -> int:
    return sum(w.numel() * w.element_size() for w in sampler.pipeline.unet.parameters())


def test_a_weight_is_the_nearest_level_of_its_channel(tiny_sd: Path):
    model = adapted(tiny_sd)
    exact = merged(model.unet)
    before, after = hold(model, 8)
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


@pytest.mark.parametrize(("bits", "share"), [(16, 0.5), (8, 0.25)])
def test_predictions_are_those_of_32_bits_but_for_little_and_pipelines_use_them(
    bits: Bits, share: float, tiny_sd: Path, tiny_svd: Path
):
    draw = torch.Generator().manual_seed(0)
    model, noisy, text = (
        adapted(tiny_sd),
        torch.randn(1, 4, 8, 8, generator=draw),
        torch.randn(1, 3, 16, generator=draw),
    )
    how = {"prompts": ["a red circle"], "seeds": [1], "num_inference_steps": 1}
    with torch.no_grad():
        exact, drawn = model.unet(noisy, 500, text).sample, images(backbone=model, **how)
        hold(model, bits)
        away = model.unet(noisy, 500, text).sample - exact
    assert away.dtype == torch.float32
    assert 0 < float(away.norm() / exact.norm()) < 0.02
    assert not np.array_equal(images(backbone=model, **how), drawn)
    video = StableVideoDiffusion(path=str(tiny_svd))
    clip = {"images": np.full((1, 64, 64, 3), 90, np.uint8), "seeds": [1], "num_inference_steps": 1}
    plain = VideoSampler(backbone=video)
    before, all_bytes = plain.video(**clip), stored(plain)
    hold(video, bits)
    held = VideoSampler(backbone=video)
    assert 0 < np.abs(held.video(**clip).astype(int) - before).mean() < 4
    assert stored(held) < all_bytes * (share + 0.05)  # of the very network that samples


def test_guidance_of_words_leaves_a_network_of_16_bits_as_it_was(tiny_svd: Path, tiny_clip: Path):
    """Below a level the network is asked otherwise; what was put in its place then has to be what stood there."""
    video = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    hold(video, 16)
    sampler = VideoSampler(backbone=video)
    clip = {"prompts": ["a red circle"], "seeds": [1], "num_inference_steps": 2}
    first = sampler.video(**clip)
    assert np.array_equal(sampler.video(**clip), first)


def test_a_channel_of_zeros_stays_zero(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    model.unet.conv_in.weight.data[3] = 0
    hold(model, 8)
    assert not model.unet.conv_in.weight[3].any()
    assert model.unet.conv_in.weight[2].any()


def test_the_verbs_take_it(tiny_sd: Path, styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sample", str(tiny_sd), "--prompt", "a red circle", "--steps", "1", "--no-watermark"]
    assert cli.main([*words, "--bits", "8", "--out", str(tmp_path / "held")]) == 0
    assert "network held in 0." in capsys.readouterr().err
    evaluate = ["evaluate", str(styled), "--count", "1", "--two-objects", "0", "--steps", "1", "--strength", "0"]
    (tmp_path / "p.txt").write_text("a red circle\n")
    evaluate += ["--prompts-from", str(tmp_path / "p.txt"), "--metrics", "forgetting", "--words", "{prompt} on black"]
    gate = ["--neutral", "--gate", "pixels forgotten <= 0"]
    assert cli.main([*evaluate, *gate, "--out", str(tmp_path / "same")]) == 0
    few = ["--bits", "8", "--base-bits", "32"]
    assert cli.main([*evaluate, *gate, *few, "--out", str(tmp_path / "other")]) == 1
    assert cli.main([*evaluate, *gate, "--bits", "16", "--out", str(tmp_path / "both")]) == 0
    assert cli.main([*words, "--bits", "4", "--out", str(tmp_path / "no")]) == 2
    assert "'4' is not auto, 32, 16 or 8" in capsys.readouterr().err
