"""Parity of Wan with a first frame, in its three ways: loss and clips against diffusers' own pipeline and network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline
from PIL import Image

from mmtrain import artifact
from mmtrain.backbone.wan import Wan
from mmtrain.batch import Batch, to_unit
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng
from mmtrain.sample.generate import clips

Family = Callable[[str], Path]
CAPTIONS, POSITIONS, SIDE = ["a red circle", "a blue square"], [4, 5], 16
KINDS = ["wan_i2v", "wan_i2v_plain", "wan_i2v_by_token"]


def opened(folder: Path, kind: str) -> tuple[Wan, Any]:
    model = Wan(path=str(folder), starts_from="image", num_frames=5, shift=3.0, size=(SIDE, SIDE))
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert (pipe.image_encoder is not None) == (kind == "wan_i2v")
    assert pipe.config.expand_timesteps == (kind == "wan_i2v_by_token")
    return model, pipe


def clip(seed: int, frames: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, SIDE, SIDE, 3), np.uint8)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_pipelines_own_conditioning(family: Family, kind: str):
    model, pipe = opened(family(kind), kind)
    pixels, rng = [clip(0), clip(1)], Rng(3, 1, POSITIONS)
    frames = torch.stack([to_unit(c) for c in pixels])
    got = Denoise(drop_text=0.0, drop_image=1.0)(model, Batch(["x", "y"], POSITIONS, CAPTIONS, frames), rng).per_sample

    posterior, config = pipe.vae.encode(frames.transpose(1, 2)).latent_dist, pipe.vae.config
    spread = posterior.std * rng.normal("posterior", (4, 3, 4, 4))
    if kind == "wan_i2v_by_token":
        spread[:, :, 0] = 0  # the frame that is given is given as it is
    middle, unit = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    latents, noise = (posterior.mean + spread - middle) / unit, rng.normal("noise", (4, 3, 4, 4))
    even = rng.spread("level")
    sigma = (3 * even / (1 + 2 * even)).float()
    wide = sigma.view(2, 1, 1, 1, 1)
    noisy = (1 - wide) * latents + wide * noise
    words = WanPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.scheduler)
    for i, caption in enumerate(CAPTIONS):
        picture, z, time = Image.fromarray(pixels[i][0]), noisy[i : i + 1], 1000 * sigma[i : i + 1]
        text, _ = words.encode_prompt([caption], do_classifier_free_guidance=False, max_sequence_length=512)
        image = pipe.video_processor.preprocess(picture, height=SIDE, width=SIDE)
        given = pipe.prepare_latents(image, 1, 4, SIDE, SIDE, 5, torch.float32, torch.device("cpu"), None, z)
        counted: Any = 1.0
        if kind == "wan_i2v_by_token":
            _, start, counted = given
            z = (1 - counted) * start + counted * z
            time = (counted[0, 0, :, ::2, ::2] * time).flatten()[None]
        else:
            z = torch.cat([z, given[1]], 1)
        embeds = pipe.encode_image(picture) if kind == "wan_i2v" else None
        velocity = pipe.transformer(z, time, text, embeds, return_dict=False)[0]
        wanted = (counted * (velocity - (noise - latents)[i : i + 1])).square().mean()
        torch.testing.assert_close(got[i], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negative", ["", "a black square"])
def test_clips_are_the_vanilla_pipelines_own(family: Family, kind: str, negative: str):
    pytest.importorskip("ftfy", reason="diffusers' own pipeline cleans prompts by it")
    model, pipe = opened(family(kind), kind)
    how: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "num_frames": 5}
    how |= {"height": SIDE, "width": SIDE}
    firsts = np.stack([clip(2)[0], clip(3)[0]])
    got = clips(backbone=model, prompts=CAPTIONS, images=firsts, negative_prompt=negative, seeds=[3, 4], **how)
    for i, caption in enumerate(CAPTIONS):
        draw = torch.Generator().manual_seed(3 + i)
        made = pipe(
            Image.fromarray(firsts[i]), [caption], [negative] if negative else None, generator=draw, **how
        ).frames
        apart = np.abs(got[i] - (np.asarray(made)[0] * 255).round())
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01
    assert np.abs(got[0].astype(int) - got[1]).max() > 1


@torch.no_grad()
def test_a_model_of_5_b_starts_from_text_too_and_tells_time_by_token(family: Family):
    folder = family("wan_i2v_by_token")
    model = Wan(path=str(folder), num_frames=5, shift=3.0)
    assert isinstance(model.pipeline(), WanPipeline)
    noisy, text = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 512, 16)
    times = torch.tensor([[300.0] * 12, [700.0] * 12])
    wanted = model.network(noisy, times, text, return_dict=False)[0]
    torch.testing.assert_close(model.predict(noisy, torch.tensor([0.3, 0.7]), {"text": text}), wanted)


def test_a_folder_says_what_it_starts_from_and_another_wish_is_refused(family: Family):
    with pytest.raises(UserError, match="choose backbone=wan_i2v"):
        Wan(path=str(family("wan_i2v")))
    with pytest.raises(UserError, match="choose backbone=wan,"):
        Wan(path=str(family("wan")), starts_from="image")
    assert artifact.opened(str(family("wan_i2v")))[0].starts_from == "image"
    assert artifact.opened(str(family("wan")))[0].starts_from == "text"


def test_first_and_last_frames_are_refused(family: Family, tmp_path: Path):
    model = Wan(path=str(family("wan_i2v")), starts_from="image")
    model.network.register_to_config(pos_embed_seq_len=514)  # type: ignore[operator]
    model.network.save_config(tmp_path / "transformer")  # type: ignore[operator]
    from mmtrain.backbone import wan_image

    with pytest.raises(UserError, match="first and last frames"):
        wan_image.opened(str(tmp_path), None, model.network.config, in_place=False)


def test_encoder_outputs_of_first_frames_are_not_those_of_text_alone(family: Family):
    names = ["wan", "wan_i2v_plain", "wan_i2v"]
    ids = {Wan(path=str(family(n)), starts_from="text" if n == "wan" else "image").encoder_id for n in names}
    assert len(ids) == 3
