"""Parity of every family: the training loss, and the frames, against diffusers' own model, scheduler and pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from omegaconf import OmegaConf

from mmtrain.backbone.animatediff import AnimateDiff
from mmtrain.backbone.prior import Prior
from mmtrain.backbone.sdxl import StableDiffusionXL
from mmtrain.backbone.vq import VQCodec
from mmtrain.backbone.wan import Wan
from mmtrain.batch import Batch
from mmtrain.config import build
from mmtrain.config.recipe import CONF
from mmtrain.errors import UserError
from mmtrain.objective.codec import Reconstruct
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng
from mmtrain.sample.generate import clips, images

Family = Callable[[str], Path]
CAPTIONS = ["a red circle", "a blue square"]
POSITIONS = [4, 5]


def batch(frames: int, side: int = 64) -> Batch:
    pixels = torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(["x", "y"], POSITIONS, CAPTIONS, pixels)


def ours(model: Any, given: Batch, rng: Rng) -> torch.Tensor:
    with torch.no_grad():
        return Denoise(drop_text=0.0, drop_image=0.0)(model, given, rng).per_sample


def vanilla(folder: Path, name: str) -> Any:
    pipeline = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def squared(error: torch.Tensor) -> torch.Tensor:
    return error.square().flatten(1).mean(1)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_sdxl(family: Family, kind: str):
    model = StableDiffusionXL(path=str(family("sdxl")))
    theirs = DDPMScheduler.from_config(model.scheduler.config, prediction_type=kind)
    model.schedule = type(model.schedule)(theirs.config)
    given, rng = batch(1), Rng(3, 1, POSITIONS)
    got = ours(model, given, rng)
    pipe = vanilla(family("sdxl"), "StableDiffusionXLPipeline")
    assert given.frames is not None
    posterior = pipe.vae.encode(given.frames[:, 0]).latent_dist
    latents = (posterior.mean + posterior.std * rng.normal("posterior", (4, 8, 8))) * pipe.vae.config.scaling_factor
    steps, noise = (rng.spread("level") * 1000).long(), rng.normal("noise", (4, 8, 8))
    text, _, pooled, _ = pipe.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=False)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    noisy = theirs.add_noise(latents, noise, steps)
    added = {"text_embeds": pooled, "time_ids": sizes}
    output = pipe.unet(noisy, steps, encoder_hidden_states=text, added_cond_kwargs=added).sample
    wanted = noise if kind == "epsilon" else theirs.get_velocity(latents, noise, steps)
    torch.testing.assert_close(got, squared(output - wanted), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_sdxl_drops_text_as_its_pipeline_leaves_it_out(family: Family):
    model, pipe = StableDiffusionXL(path=str(family("sdxl"))), vanilla(family("sdxl"), "StableDiffusionXLPipeline")
    drop = torch.tensor([True, False])
    got = model.condition(model.encode(batch(1).frames), CAPTIONS, drop_text=drop, drop_image=drop)
    text, away, pooled, away_pooled = pipe.encode_prompt(CAPTIONS[1:], device="cpu")
    torch.testing.assert_close(got["text"], torch.cat([away, text]))
    torch.testing.assert_close(got["pooled"], torch.cat([away_pooled, pooled]))


@torch.no_grad()
def test_animatediff(family: Family):
    model = AnimateDiff(path=str(family("animatediff")), num_frames=3)
    given, rng = batch(3), Rng(3, 1, POSITIONS)
    got = ours(model, given, rng)
    pipe = vanilla(family("animatediff"), "AnimateDiffPipeline")
    theirs = DDPMScheduler.from_config(pipe.scheduler.config)
    assert given.frames is not None
    posterior = pipe.vae.encode(given.frames.flatten(0, 1)).latent_dist
    mean, std = (part.unflatten(0, (2, 3)) for part in (posterior.mean, posterior.std))
    latents = (mean + std * rng.normal("posterior", (3, 4, 8, 8))) * pipe.vae.config.scaling_factor
    latents = latents.permute(0, 2, 1, 3, 4)
    steps, noise = (rng.spread("level") * 1000).long(), rng.normal("noise", (4, 3, 8, 8))
    text, _ = pipe.encode_prompt(CAPTIONS, "cpu", 1, False)
    output = pipe.unet(theirs.add_noise(latents, noise, steps), steps, text.repeat_interleave(3, 0)).sample
    wanted = squared(output - theirs.get_velocity(latents, noise, steps))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_fresh_motion_modules_leave_each_frame_the_picture_that_it_was(family: Family, tiny_sd: Path):
    model, still = (
        AnimateDiff(path=str(family("animatediff")), num_frames=3),
        vanilla(tiny_sd, "StableDiffusionPipeline"),
    )
    draw = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(1, 4, 3, 8, 8, generator=draw), torch.randn(1, 5, 16, generator=draw)
    got = model.predict(noisy, torch.tensor([300]), {"text": text})
    wanted = still.unet(noisy[0].transpose(0, 1), 300, text.expand(3, -1, -1)).sample
    torch.testing.assert_close(got[0].transpose(0, 1), wanted, rtol=1e-5, atol=1e-5)
    for name, weight in model.unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            weight.add_(0.1)
    assert not torch.allclose(model.predict(noisy, torch.tensor([300]), {"text": text}), got, atol=1e-2)


@torch.no_grad()
def test_wan(family: Family):
    model = Wan(path=str(family("wan")), num_frames=5, shift=3.0, size=(16, 16))
    given, rng = batch(5, 16), Rng(3, 1, POSITIONS)
    got = ours(model, given, rng)
    pipe = vanilla(family("wan"), "WanPipeline")
    assert given.frames is not None
    posterior, config = pipe.vae.encode(given.frames.transpose(1, 2)).latent_dist, pipe.vae.config
    latents = posterior.mean + posterior.std * rng.normal("posterior", (4, 3, 4, 4))
    middle, unit = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    latents, noise = (latents - middle) / unit, rng.normal("noise", (4, 3, 4, 4))
    even = rng.spread("level")
    sigma = (3 * even / (1 + 2 * even)).float()
    wide = sigma.view(2, 1, 1, 1, 1)
    text, _ = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, max_sequence_length=512)
    output = pipe.transformer((1 - wide) * latents + wide * noise, 1000 * sigma, text, return_dict=False)[0]
    torch.testing.assert_close(got, squared(output - (noise - latents)), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_one_euler_step_of_wans_scheduler_goes_where_the_velocity_points(family: Family):
    model, scheduler = Wan(path=str(family("wan")), num_frames=5), FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(1)
    noisy = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = {"text": torch.zeros(1, 512, 16)}
    velocity = model.predict(noisy, scheduler.sigmas[:1], condition)
    torch.testing.assert_close(scheduler.timesteps[:1], 1000 * scheduler.sigmas[:1])
    end = scheduler.step(velocity, scheduler.timesteps[0], noisy).prev_sample
    torch.testing.assert_close(end, noisy - scheduler.sigmas[0] * velocity)


@torch.no_grad()
def test_prior(family: Family):
    model = Prior(path=str(family("prior")))
    given, rng = batch(1), Rng(3, 1, POSITIONS)
    got = ours(model, given, rng)
    pipe = vanilla(family("prior"), "KandinskyPriorPipeline")
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    x = (model.encode(given.frames)["image_embeds"] - pipe.prior.clip_mean) / pipe.prior.clip_std
    steps, noise = (rng.spread("level") * 1000).long(), rng.normal("noise", x.shape[1:])
    ids = pipe.tokenizer(CAPTIONS, padding="max_length", return_tensors="pt")
    text = pipe.text_encoder(ids.input_ids)
    output = pipe.prior(
        theirs.add_noise(x, noise, steps), steps, text.text_embeds, text.last_hidden_state, ids.attention_mask.bool()
    ).predicted_image_embedding
    torch.testing.assert_close(got, squared(output - x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pipe.prior.post_process_latents(x), model.encode(given.frames)["image_embeds"])


@torch.no_grad()
def test_vq(family: Family):
    model = VQCodec(path=str(family("vq")))
    given = batch(2)
    assert given.frames is not None
    loss = Reconstruct(kl_weight=0.5)(model, given, Rng(0, 0, POSITIONS)).per_sample
    theirs = diffusers.VQModel.from_pretrained(family("vq"))
    wanted = theirs(given.frames.flatten(0, 1))
    error = (wanted.sample - given.frames.flatten(0, 1)).unflatten(0, (2, 2)).flatten(1)
    per_sample = error.abs().mean(1) + error.square().mean(1) + 0.5 * wanted.commit_loss
    torch.testing.assert_close(loss, per_sample, rtol=1e-6, atol=1e-6)


CALL = {"num_inference_steps": 2, "guidance_scale": 3.0}
PICTURES = {"sdxl": (StableDiffusionXL, "StableDiffusionXLPipeline", {})}
FILMS: dict[str, Any] = {
    "animatediff": (AnimateDiff, "AnimateDiffPipeline", {"num_frames": 3}),
    "wan": (Wan, "WanPipeline", {"num_frames": 5}),
}


@pytest.mark.parametrize("name", [*PICTURES, *FILMS])
@pytest.mark.parametrize("negative", ["", "a black square"])
def test_samples_are_the_vanilla_pipelines_own(family: Family, name: str, negative: str):
    cls, pipeline, more = (PICTURES | FILMS)[name]
    how = {**CALL, **more, "height": 16, "width": 16}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    away = [negative] * 2 if negative else None
    pipe = vanilla(family(name), pipeline)
    if name == "wan":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    made = pipe(CAPTIONS, negative_prompt=away, **how, generator=generators, output_type="np")
    wanted = np.asarray(made.images if name in PICTURES else made.frames)
    ask = images if name in PICTURES else clips
    got = ask(
        backbone=cls(path=str(family(name)), **more), prompts=CAPTIONS, negative_prompt=negative, seeds=[3, 4], **how
    )
    apart = np.abs(got - (wanted * 255).round())
    # How a product is summed depends on where in memory its weights lie: a value between two levels may go either way.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


def test_two_experts_share_the_levels(family: Family, tmp_path: Path):
    """Wan 2.2: adapters go on one transformer, which is trained at its own levels; both are in the pipeline."""
    node = OmegaConf.load(CONF / "backbone" / "wan_fresh.yaml")
    small = {"transformer": {"num_layers": 1, "num_attention_heads": 1}, "codec": {"base_dim": 8}}
    model = build(OmegaConf.merge(node, small, {"boundary": 0.875, "expert": "low"}))
    model.save(tmp_path, torch.float32)
    for expert, part in (("high", "transformer"), ("low", "transformer_2")):
        opened = Wan(path=str(tmp_path), expert=expert, num_frames=5)  # type: ignore[arg-type]
        assert opened.network is opened.parts()[part]
        levels = Denoise().draw(opened, Rng(0, 0, range(64)))
        assert all((level >= 0.875) == (expert == "high") for level in levels.tolist())
    with pytest.raises(UserError, match="two transformers"):
        Wan(path=str(tmp_path))
    with pytest.raises(UserError, match="null"):
        Wan(path=str(family("wan")), expert="low")


@pytest.mark.parametrize(("name", "count"), [("wan", 4), ("wan", 3), ("wan", 0), ("animatediff", 9)])
def test_frame_counts_that_a_model_was_not_made_for_are_refused(family: Family, name: str, count: int):
    with pytest.raises(UserError, match="num_frames"):
        FILMS[name][0](path=str(family(name)), num_frames=count)


@pytest.mark.parametrize(("name", "side"), [("animatediff", 60), ("wan", 20)])
def test_sizes_that_a_codec_cannot_divide_are_refused(family: Family, name: str, side: int):
    with pytest.raises(UserError, match="multiples of 8"):
        FILMS[name][0](path=str(family(name)), **FILMS[name][2]).encode(torch.zeros(1, 5, 3, side, side))


def test_motion_modules_of_another_network_are_refused(family: Family, tiny_sd: Path, tmp_path: Path):
    diffusers.MotionAdapter(block_out_channels=(32, 64), motion_layers_per_block=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="modules made for this network"):
        AnimateDiff(path=str(tiny_sd), motion_path=str(tmp_path))
