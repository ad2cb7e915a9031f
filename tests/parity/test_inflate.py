"""A fresh Stable Video Diffusion that starts from a Stable Diffusion makes of each frame what that one makes of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from mmtrain.backbone import svd
from mmtrain.backbone.inflate import inflate
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.errors import UserError

SHIPPED = Path(__file__).parents[2] / "data" / "backbones"
STEPS = [20, 300, 600, 950]
UNET: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "block_out_channels": [32, 32],
    "addition_time_embed_dim": 8,
    "layers_per_block": 1,
    "num_attention_heads": [2, 2],
}


def started(sd: Path | None, codec: Path, clip: Path, **changed: Any) -> Any:
    torch.manual_seed(0)
    where = None if sd is None else str(sd)
    return svd.fresh(unet=UNET | changed, scheduler={}, codec=str(codec), clip=str(clip), num_frames=3, sd=where)


def outputs(image: StableDiffusion, video: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of both networks, over levels, frames that differ and first frames that differ: ``[levels frames c h w]``."""
    generator = torch.Generator().manual_seed(1)
    noisy, first = torch.randn((2, len(STEPS), 3, 4, 8, 8), generator=generator)
    token = torch.randn(len(STEPS), 1, video.conditioning_width, generator=generator)
    steps, facts = torch.tensor(STEPS), torch.tensor([[6.0, 127.0, 0.02]])
    alpha, sigma = image.schedule.signal(steps)
    level = (sigma / alpha).log().float() / 4
    given = torch.cat([noisy, first], 2)
    with torch.no_grad():
        shown = [video.unet(given[[i]], level[i], token[[i]], added_time_ids=facts).sample for i in range(len(STEPS))]
        drawn = image.unet(noisy.flatten(0, 1), steps.repeat_interleave(3), token.repeat_interleave(3, 0)).sample
    return torch.cat(shown), drawn.view_as(noisy)


MORE = {  # attention where the image network has none
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 2,
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
}


@pytest.mark.parametrize("changed", [{}, MORE])
def test_each_frame_is_the_image_networks_own(
    changed: dict[str, Any], tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path
):
    image = StableDiffusion(path=str(tiny_sd))
    video = started(None, tiny_video_codec, narrow_clip, **changed)
    before, wanted = outputs(image, video)
    inflate(video.unet, image.unet, image.schedule)
    after, _ = outputs(image, video)
    assert float((before - wanted).norm() / wanted.norm()) > 0.5
    assert float((after - wanted).norm() / wanted.norm()) < 0.01


def test_levels_are_embedded_alike():
    """Of the shipped Stable Diffusion: a trained network's embedding is smooth in the level, and widths are of use."""
    image = StableDiffusion(path=str(SHIPPED / "sd"))
    network: Any = UNetSpatioTemporalConditionModel.from_config(
        UNetSpatioTemporalConditionModel.load_config(SHIPPED / "svd" / "unet")
    )
    inflate(network, image.unet, image.schedule)
    alpha, sigma = image.schedule.signal(torch.tensor(STEPS))
    got = network.time_embedding(network.time_proj((sigma / alpha).log().float() / 4))
    wanted = image.unet.time_embedding(image.unet.time_proj(torch.tensor(STEPS)))
    assert float((got - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.25


def test_a_fresh_model_starts_from_a_folder(tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path):
    image, video = StableDiffusion(path=str(tiny_sd)), started(tiny_sd, tiny_video_codec, narrow_clip)
    assert torch.equal(video.unet.conv_out.weight, image.unet.conv_out.weight)
    assert not any(weight.requires_grad for weight in video.unet.parameters())


def test_a_start_that_does_not_fit_is_refused(tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path):
    with pytest.raises(UserError, match="layers that its network has not"):
        started(tiny_sd, tiny_video_codec, narrow_clip, block_out_channels=[32, 64])
    with pytest.raises(UserError, match="of 4 heads first"):
        started(tiny_sd, tiny_video_codec, narrow_clip, num_attention_heads=[4, 4])


def test_a_start_of_another_prediction_is_refused(
    tmp_path: Path, tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path
):
    other = shutil.copytree(tiny_sd, tmp_path / "sd")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon").replace(": true", ": false"))
    with pytest.raises(UserError, match="a model of epsilon"):
        started(other, tiny_video_codec, narrow_clip)
