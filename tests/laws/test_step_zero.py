"""Law: a fresh adapter changes nothing. Frames with bridge and LoRA attached are the bare model's, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from PIL import Image

from mmtrain.adapter.bottleneck import Bottleneck
from mmtrain.adapter.bridge import Bridge
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.sample.generate import images
from mmtrain.sample.video import VideoSampler

SMALL = {"height": 64, "width": 64, "num_inference_steps": 2}
TEMPORAL = ["*.temporal_transformer_blocks.*.attn1.to_*", "*.attn2.to_v", "*.temporal_transformer_blocks.*.ff*.net.*"]
BEHIND = ["*.attn1.to_out.0", "*.ff.net.2"]
PROMPTS = ["a red circle moving left", "a blue square moving up"]


def svd(path: Path, clip: Path) -> StableVideoDiffusion:
    return StableVideoDiffusion(path=str(path), text_path=str(clip))


def with_fresh_adapters(backbone: Any, tokens: int = 1) -> Any:
    Bridge(tokens=tokens, width=16, heads=2, code=8).attach(backbone)
    LoRA(rank=4, alpha=8, targets=TEMPORAL).attach(backbone)
    Bottleneck(width=4, targets=BEHIND).attach(backbone)
    return backbone


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_image_to_video_equals_the_vanilla_pipeline(tiny_svd: Path, tiny_clip: Path, photo: np.ndarray):
    vanilla = StableVideoDiffusionPipeline.from_pretrained(tiny_svd)
    vanilla.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    wanted = vanilla(Image.fromarray(photo), **SMALL, num_frames=3, generator=generator, output_type="pil").frames[0]
    sampler = VideoSampler(backbone=with_fresh_adapters(svd(tiny_svd, tiny_clip)))
    got = sampler.video(images=photo[None], **SMALL, num_frames=3, seeds=[5])
    assert np.array_equal(got[0], np.stack([np.asarray(frame) for frame in wanted]))


@pytest.mark.parametrize("seen", [False, True])
def test_text_to_video_equals_the_text_towers_own_embedding(
    seen: bool, tiny_svd: Path, tiny_clip: Path, photo: np.ndarray
):
    frames = np.stack([photo, photo[::-1]]) if seen else None
    bare = svd(tiny_svd, tiny_clip)
    fresh = with_fresh_adapters(svd(tiny_svd, tiny_clip))
    wanted, got = (
        VideoSampler(backbone=b).video(prompts=PROMPTS, images=frames, **SMALL, num_frames=2, seeds=[1, 2])
        for b in (bare, fresh)
    )
    assert np.array_equal(got, wanted)


def test_trained_adapters_do_change_the_frames(tiny_svd: Path, tiny_clip: Path, photo: np.ndarray):
    """The control: were frames deaf to the adapters, the laws above would hold for nothing."""
    backbone = with_fresh_adapters(svd(tiny_svd, tiny_clip))
    how = {"prompts": PROMPTS[:1], "images": photo[None], **SMALL, "num_frames": 2, "seeds": [1]}
    before = VideoSampler(backbone=backbone).video(**how)
    torch.nn.init.normal_(backbone.bridge.out.weight)
    bridged = VideoSampler(backbone=backbone).video(**how)
    for name, weight in backbone.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted = VideoSampler(backbone=backbone).video(**how)
    for weight in backbone.bridge.steering.values():
        torch.nn.init.normal_(weight)
    steered = VideoSampler(backbone=backbone).video(**how)
    assert not np.array_equal(before, bridged)
    assert not np.array_equal(bridged, steered)
    bridged = steered
    assert not np.array_equal(bridged, adapted)


def test_the_layers_in_place_change_no_bit_of_the_network(tiny_svd: Path, tiny_clip: Path):
    backbone = svd(tiny_svd, tiny_clip)
    inputs = (torch.randn(1, 2, 8, 8, 8), torch.tensor([0.3]), torch.randn(1, 1, 24), torch.tensor([[6.0, 127, 0.02]]))
    with torch.no_grad():
        before = backbone.unet(*inputs).sample
        after = with_fresh_adapters(backbone).unet(*inputs).sample
    assert torch.equal(before, after)


def test_images_equal_the_vanilla_pipeline(tiny_sd: Path):
    vanilla = StableDiffusionPipeline.from_pretrained(tiny_sd)
    vanilla.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    wanted = vanilla(PROMPTS, **SMALL, guidance_scale=4.0, generator=generators, output_type="pil").images
    backbone = StableDiffusion(path=str(tiny_sd))
    LoRA(rank=4, alpha=8, targets=["*.to_q", "*.to_v"]).attach(backbone)
    got = images(backbone=backbone, prompts=PROMPTS, **SMALL, guidance_scale=4.0, seeds=[3, 4])
    assert np.array_equal(got, np.stack([np.asarray(image) for image in wanted]))
