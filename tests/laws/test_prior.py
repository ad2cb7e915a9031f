"""The unCLIP way: a prior makes of a prompt the image embedding that Stable Video Diffusion was trained to see."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from mmtrain.backbone.prior import Prior
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.sample.generate import embeddings
from mmtrain.sample.video import VideoSampler
from mmtrain.sample.write import opened_prior, sample

Family = Callable[[str], Path]


def test_embeddings_are_those_of_the_vanilla_pipeline(family: Family):
    prompts, prior = ["a red circle", "a circle"], Prior(path=str(family("prior")))
    got = embeddings(prior, prompts, seeds=[3, 4])
    vanilla = diffusers.KandinskyPriorPipeline.from_pretrained(family("prior"))
    vanilla.set_progress_bar_config(disable=True)
    for row, prompt, seed in zip(got, prompts, (3, 4), strict=True):
        wanted = vanilla([prompt], generator=torch.Generator().manual_seed(seed)).image_embeds[0]
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[0], got[1])


def test_a_clip_by_a_prior_is_that_of_its_embedding(family: Family, tiny_svd: Path, monkeypatch: pytest.MonkeyPatch):
    """The prior's embedding stands exactly where the image's own stood."""
    backbone, prior = StableVideoDiffusion(path=str(tiny_svd)), Prior(path=str(family("prior")))
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    how = {"images": picture, "height": 16, "width": 16, "num_frames": 2, "num_inference_steps": 1, "seeds": [5]}
    own = backbone.embed(torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 127.5 - 1)
    monkeypatch.setattr("mmtrain.sample.video.embeddings", lambda *_: own)
    got = VideoSampler(backbone=backbone, prior=prior).video(prompts=["a red circle"], guidance_scale=1.0, **how)
    wanted = VideoSampler(backbone=backbone).video(guidance_scale=1.0, **how)
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
    monkeypatch.setattr("mmtrain.sample.video.embeddings", lambda *_: -30 * own)
    other = VideoSampler(backbone=backbone, prior=prior).video(prompts=["a red circle"], guidance_scale=1.0, **how)
    assert np.abs(other.astype(int) - wanted.astype(int)).max() > 1


def test_what_does_not_fit_a_prior_is_refused(family: Family, tiny_sd: Path, tiny_svd: Path):
    folder = str(family("prior"))
    with pytest.raises(UserError, match="width 16 for a model that reads 24"):
        opened_prior(folder, StableVideoDiffusion(path=str(tiny_svd)))
    with pytest.raises(UserError, match="for a model that reads none"):
        opened_prior(folder, StableDiffusion(path=str(tiny_sd)))
    with pytest.raises(UserError, match="a StableDiffusion; a prior"):
        opened_prior(str(tiny_sd), StableVideoDiffusion(path=str(tiny_svd)))
    with pytest.raises(UserError, match="makes embeddings"):
        sample(folder, prompts=["a red circle"])
