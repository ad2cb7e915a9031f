"""Laws of sampling: a clip is a function of its own prompt, image and seed, whatever is sampled beside it or before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmtrain.adapter.bridge import Bridge
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.sample.generate import images
from mmtrain.sample.video import VideoSampler

PROMPTS = ["a red circle moving left", "a blue square still", "a red square moving up"]
TINY = {"num_inference_steps": 2, "num_frames": 2}


@pytest.fixture(scope="module")
def backbone(tiny_svd: Path, tiny_clip: Path) -> StableVideoDiffusion:
    """With adapters that have learnt something, however wild."""
    made = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    torch.manual_seed(0)
    Bridge(tokens=2, width=16, heads=2, code=8).attach(made)
    LoRA(rank=2, alpha=2, targets=["*.attn2.to_v", "*.attn1.to_*"], dropout=0.5).attach(made)
    for name, weight in [*made.unet.named_parameters(), *made.bridge.named_parameters()]:
        if "lora_B" in name or name == "out.weight" or name.startswith("steering"):
            torch.nn.init.normal_(weight, std=0.3)
    return made


@pytest.fixture(scope="module")
def drawing(tiny_sd: Path) -> StableDiffusion:
    return StableDiffusion(path=str(tiny_sd))


@pytest.fixture(scope="module")
def sampler(backbone: StableVideoDiffusion, drawing: StableDiffusion) -> VideoSampler:
    return VideoSampler(backbone=backbone, first_frame=drawing)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("way", ["text", "image and text", "image", "first frame"])
def test_a_clip_does_not_depend_on_its_neighbours(sampler: VideoSampler, photos: np.ndarray, way: str):
    def sample(rows: list[int]) -> np.ndarray:
        given: dict[str, Any] = {"seeds": [10 + r for r in rows], **TINY}
        if way != "image":
            given["prompts"] = [PROMPTS[r] for r in rows]
        if way.startswith("image"):
            given["images"] = photos[rows]
        return sampler.video(**given, first_frames="generate" if way == "first frame" else "none")

    together = sample([0, 1, 2])
    assert together.shape == (3, 2, 64, 64, 3)
    assert together.dtype == np.uint8
    assert apart(together[:2], sample([0, 1])) <= 1
    assert apart(together[1:2], sample([1])) <= 1
    assert apart(together[0], together[1]) > 20


def test_a_seed_says_it_all(sampler: VideoSampler):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampler.video(prompts=PROMPTS[:1], seeds=[3], **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    sampler.video(prompts=PROMPTS[1:2], images=np.zeros((1, 64, 64, 3), np.uint8), seeds=[4], **TINY)
    assert np.array_equal(sampler.video(prompts=PROMPTS[:1], seeds=[3], **TINY), first)
    assert apart(sampler.video(prompts=PROMPTS[:1], seeds=[4], **TINY), first) > 20


def test_every_input_matters(sampler: VideoSampler, photos: np.ndarray):
    given: dict[str, Any] = {"prompts": PROMPTS[:1], "images": photos[:1], "seeds": [3], **TINY}
    changes: list[dict[str, Any]] = [
        {"prompts": PROMPTS[1:2]},
        {"images": photos[1:2]},
        {"images": None},
        {"negative_prompt": "a blue square still"},
        {"negative_prompt": None},
        {"guidance_scale": 1.0},
        {"guidance_scale": 6.0},
        {"guidance_above": 0.0},
        {"image_guidance": True},
        {"tokens": "image"},
        {"fps": 25},
        {"num_inference_steps": 3},
    ]
    first = sampler.frames(**given)
    for change in changes:
        assert not np.array_equal(sampler.frames(**{**given, **change}), first), change


def test_without_guidance_the_negative_prompt_is_not_seen(sampler: VideoSampler):
    how: dict[str, Any] = {"prompts": PROMPTS[:1], "seeds": [3], "guidance_scale": 1.0, **TINY}
    assert np.array_equal(sampler.video(**how), sampler.video(**how, negative_prompt="a blue square"))


def test_the_negative_prompt_is_the_unconditional_branch(sampler: VideoSampler):
    """Steering from a prompt towards the same prompt is no steering, whatever the scale."""
    how: dict[str, Any] = {"prompts": PROMPTS[:1], "seeds": [3], **TINY}
    plain = sampler.video(**how, guidance_scale=1.0)
    assert apart(sampler.video(**how, guidance_scale=8.0, negative_prompt=PROMPTS[0]), plain) <= 1


def test_no_words_steer_nowhere(backbone: StableVideoDiffusion):
    codes = backbone.text_code(["", PROMPTS[0], "  "])
    assert [bool(code.abs().max() > 0) for code in codes] == [False, True, False]


def test_guidance_ends_where_it_is_told_to(sampler: VideoSampler, photos: np.ndarray):
    rows: list[int] = []
    unet = sampler.pipeline.unet
    watched = unet.conv_in.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    levels: list[float] = []
    timed = unet.time_proj.register_forward_hook(lambda m, i, out: levels.append(float(np.exp(4 * float(i[0][0])))))
    how: dict[str, Any] = {"prompts": PROMPTS[:1], "images": photos[:1], "seeds": [3], **TINY, "num_inference_steps": 4}
    try:
        within = sampler.frames(**how, guidance_scale=6.0, guidance_above=5.0)
        doubled = [n == 2 * how["num_frames"] for n in rows]
        assert doubled == [level >= 5.0 for level in levels]
        assert sum(doubled) == 2, levels
    finally:
        watched.remove()
        timed.remove()
    nowhere = sampler.frames(**how, guidance_scale=6.0, guidance_above=1e9)
    assert np.array_equal(nowhere, sampler.frames(**how, guidance_scale=1.0))
    everywhere = sampler.frames(**how, guidance_scale=6.0, guidance_above=0.0)
    assert not np.array_equal(within, nowhere)
    assert not np.array_equal(within, everywhere)
    assert np.array_equal(within, sampler.frames(**how, guidance_scale=6.0)), "the usual level of words"
    assert "forward" not in vars(unet), "the network is as it was"


def test_first_frames_are_the_stable_diffusions_own(sampler: VideoSampler, drawing: StableDiffusion):
    drawn = images(backbone=drawing, prompts=PROMPTS[:2], seeds=[5, 6], num_inference_steps=2)
    how: dict[str, Any] = {"prompts": PROMPTS[:2], "seeds": [5, 6], **TINY}
    assert np.array_equal(sampler.video(**how, first_frames="generate"), sampler.video(**how, images=drawn))


def test_sampling_leaves_training_as_it_was(backbone: StableVideoDiffusion):
    backbone.unet.train()
    modes = [part.training for part in backbone.modules()]
    trains = [weight.requires_grad for weight in backbone.parameters()]
    names = list(backbone.state_dict())
    first, second = (VideoSampler(backbone=backbone).video(prompts=PROMPTS[:1], seeds=[1], **TINY) for _ in range(2))
    assert np.array_equal(first, second)  # LoRA's dropout is off
    assert [part.training for part in backbone.modules()] == modes
    assert [weight.requires_grad for weight in backbone.parameters()] == trains
    assert list(backbone.state_dict()) == names
    backbone.eval()


def test_sizes_are_the_models_unless_given(sampler: VideoSampler):
    how: dict[str, Any] = {"prompts": PROMPTS[:1], "seeds": [0], "num_inference_steps": 1}
    assert sampler.video(**how).shape == (1, 3, 64, 64, 3)
    assert sampler.video(**how, num_frames=1, height=32, width=48).shape == (1, 1, 32, 48, 3)


def test_progress_counts_the_steps(sampler: VideoSampler, drawing: StableDiffusion):
    told: list[tuple[int, int]] = []
    sampler.video(prompts=PROMPTS[:1], seeds=[0], **TINY, progress=lambda done, total: told.append((done, total)))
    images(backbone=drawing, prompts=PROMPTS[:1], seeds=[0], num_inference_steps=2, progress=lambda *s: told.append(s))
    assert told == [(1, 2), (2, 2)] * 2


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"seeds": [0]}, "neither prompt nor image"),
    "height": ({"height": 60}, "height: 60 pixels; a multiple of 16"),
    "width": ({"width": 100}, "width: 100 pixels"),
    "zero": ({"width": 0}, "width: 0 pixels"),
    "frames": ({"num_frames": 0}, "num_frames: 0"),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps: 0"),
    "fps": ({"fps": 0}, "fps: 0"),
    "long": ({"prompts": ["red " * 40]}, "at most 16 fit the text tower"),
    "long negative": ({"negative_prompt": "red " * 40}, "at most 16 fit the text tower"),
    "seeds": ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
    "image tokens": ({"tokens": "image"}, "no first frame"),
    "drawn and given": ({"images": np.zeros((1, 64, 64, 3), np.uint8), "first_frames": "generate"}, "first frame"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said_before_any_step(sampler: VideoSampler, name: str, monkeypatch: pytest.MonkeyPatch):
    change, said = MISTAKES[name]
    monkeypatch.setattr(sampler.pipeline.unet, "forward", None)
    given: dict[str, Any] = {"prompts": PROMPTS[:1], "seeds": [0], **TINY}
    with pytest.raises(UserError, match=said):
        sampler.video(**(change if name == "nothing" else {**given, **change}))


def test_a_backbone_without_text_tower_or_drawing(tiny_svd: Path, drawing: StableDiffusion):
    bare = StableVideoDiffusion(path=str(tiny_svd))
    with pytest.raises(UserError, match="text tower"):
        VideoSampler(backbone=bare).video(prompts=PROMPTS[:1], seeds=[0], **TINY)
    with pytest.raises(UserError, match="no Stable Diffusion"):
        VideoSampler(backbone=bare).video(prompts=PROMPTS[:1], seeds=[0], first_frames="generate", **TINY)
    alone = VideoSampler(backbone=bare, first_frame=drawing)
    clip = alone.video(prompts=PROMPTS[:1], seeds=[0], first_frames="generate", tokens="image", **TINY)
    assert clip.shape == (1, 2, 64, 64, 3)
    with pytest.raises(UserError, match="height: 12 pixels; a multiple of 8"):
        images(backbone=drawing, prompts=PROMPTS[:1], seeds=[0], height=12)
    with pytest.raises(UserError, match="at most 16 fit"):
        images(backbone=drawing, prompts=["red " * 40], seeds=[0])
