"""A fresh Stable Video Diffusion that starts from a Stable Diffusion makes of each frame what that one makes of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.backbone import svd
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.errors import UserError

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


def apart(sd: Path, video: Any) -> float:
    """Relative distance of the two networks' outputs over frames that differ, first frames that differ, and levels."""
    image = StableDiffusion(path=str(sd))
    generator = torch.Generator().manual_seed(1)
    batch = (len(STEPS), 3, 4, 8, 8)
    noisy, first = (torch.randn(batch, generator=generator) for _ in range(2))
    token = torch.randn(len(STEPS), 1, video.conditioning_width, generator=generator)
    steps = torch.tensor(STEPS)
    alpha, sigma = image.schedule.signal(steps)
    facts = torch.tensor([[6.0, 127.0, 0.02]]).repeat(len(STEPS), 1)
    with torch.no_grad():
        level = (sigma / alpha).log().float() / 4
        got = torch.stack(
            [
                video.unet(torch.cat([noisy, first], 2)[[i]], level[i], token[[i]], added_time_ids=facts[[i]]).sample[0]
                for i in range(len(STEPS))
            ]
        )
        wanted = image.unet(noisy.flatten(0, 1), steps.repeat_interleave(3), token.repeat_interleave(3, 0)).sample
    return float((got - wanted.view_as(got)).norm() / wanted.norm())


def test_each_frame_is_the_image_networks_own(tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path):
    assert apart(tiny_sd, started(tiny_sd, tiny_video_codec, narrow_clip)) < 0.02
    assert apart(tiny_sd, started(None, tiny_video_codec, narrow_clip)) > 0.5


def test_a_start_that_does_not_fit_is_refused(tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path):
    with pytest.raises(UserError, match="layers that its network has not"):
        started(tiny_sd, tiny_video_codec, narrow_clip, block_out_channels=[32, 64])


def test_a_start_of_another_prediction_is_refused(
    tmp_path: Path, tiny_sd: Path, tiny_video_codec: Path, narrow_clip: Path
):
    other = shutil.copytree(tiny_sd, tmp_path / "sd")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon").replace(": true", ": false"))
    with pytest.raises(UserError, match="a model of epsilon"):
        started(other, tiny_video_codec, narrow_clip)
