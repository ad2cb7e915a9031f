"""Parity: our losses against the same numbers computed straight from transformers' and diffusers' own classes."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from transformers import CLIPModel

from mmtrain.backbone.clip import CLIP, prepare
from mmtrain.backbone.codec import KLCodec, temporal_from
from mmtrain.backbone.schedule import mix
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.text import tokenize, word_tokenizer
from mmtrain.batch import Batch
from mmtrain.objective.contrastive import Contrastive, symmetric
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng

CAPTIONS = ["a red circle", "a blue square", "a red square moving left"]


def frames(count: int) -> torch.Tensor:
    return torch.rand(3, count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def batch(count: int) -> Batch:
    return Batch(["x", "y", "z"], [4, 5, 6], CAPTIONS, frames(count))


def test_symmetric_is_the_formula_in_float64():
    a, b = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    logits = 3.0 * a @ b.T
    rows, columns = logits.logsumexp(1), logits.logsumexp(0)
    wanted = 0.5 * ((rows - logits.diagonal()) + (columns - logits.diagonal()))
    got = symmetric(a, b, torch.tensor(3.0, dtype=torch.float64).log())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_temperature_is_clamped_at_a_hundred():
    a, b = torch.eye(3), torch.eye(3)
    assert torch.equal(symmetric(a, b, 9.0), symmetric(a, b, torch.tensor(100.0).log()))


@pytest.mark.parametrize("side", [64, 300])
def test_a_towers_pixels_are_those_of_its_processor(tiny_clip: Path, side: int):
    processor = CLIP(path=str(tiny_clip)).processor
    levels = torch.randint(0, 256, (4, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours = prepare(levels / 127.5 - 1, 224, processor)
    theirs = processor(images=list(levels.permute(0, 2, 3, 1).numpy()), return_tensors="pt")["pixel_values"]
    off = (ours - theirs).abs() * torch.tensor(processor.image_std).view(3, 1, 1) * 255
    assert off.max() < 2.01, "levels of 255"
    assert (off > 0.01).float().mean() < 0.02

    smooth = prepare((levels / 127.5 - 1).requires_grad_(), 224, processor)
    assert smooth.requires_grad, "a picture that is being made has gradients"
    mean = (smooth.detach() - ours).abs().mean() * min(processor.image_std) * 255
    assert mean < 0.5, "levels: rounding, and what overshoots between the two directions is cut off by Pillow"


def test_contrastive_and_its_gradients_equal_transformers(tiny_clip: Path):
    ours, theirs = CLIP(path=str(tiny_clip)).double(), CLIPModel.from_pretrained(tiny_clip).double().eval()
    given = batch(1)
    given.frames = given.frames.double()
    ids, mask = tokenize(ours.tokenizer, CAPTIONS, "cpu")
    pixels = prepare(given.frames[:, 0], 224, ours.processor)
    wanted = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True).loss
    ours.requires_grad_(True)
    got = Contrastive()(ours, given, Rng(0, 0, [4, 5, 6])).per_sample.mean()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    got.backward()
    wanted.backward()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name).grad, weight.grad, rtol=0, atol=1e-10, msg=name)


def test_denoising_of_sd_equals_diffusers(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    given, rng = batch(1), Rng(3, 1, [4, 5, 6])
    got = Denoise(drop_text=0.0, drop_image=0.0)(model, given, rng).per_sample
    scheduler = DDPMScheduler.from_pretrained(tiny_sd, subfolder="scheduler")
    posterior = model.vae.encode(given.frames[:, 0]).latent_dist
    latents = posterior.mean + posterior.std * rng.normal("posterior", (4, 8, 8))
    latents = latents * model.vae.config.scaling_factor
    steps, noise = model.schedule.at(rng.spread("level")), rng.normal("noise", (4, 8, 8))
    ids, _ = tokenize(model.tokenizer, CAPTIONS, "cpu")
    noisy = scheduler.add_noise(latents, noise, steps)
    output = model.unet(noisy, steps, model.text_encoder(ids).last_hidden_state).sample
    wanted = (output - scheduler.get_velocity(latents, noise, steps)).square().flatten(1).mean(1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_prediction_of_svd_equals_the_scheduler_of_its_pipeline(tiny_svd: Path):
    """One Euler step to σ = 0 ends at what the scheduler takes the network to predict."""
    model = StableVideoDiffusion(path=str(tiny_svd))
    encoded = model.encode(frames(3))
    drop = torch.zeros(3, dtype=torch.bool)
    condition = model.condition(encoded, CAPTIONS, drop_text=drop, drop_image=drop)
    scheduler = EulerDiscreteScheduler.from_pretrained(tiny_svd, subfolder="scheduler")
    scheduler.set_timesteps(1)
    sigma = scheduler.sigmas[0]
    latents = model.draw_latents(encoded, Rng(0, 0, [0, 1, 2]))
    noisy = mix(latents, torch.randn(3, 3, 4, 8, 8), *model.schedule.signal(sigma.expand(3)))
    scaled = scheduler.scale_model_input(noisy, scheduler.timesteps[0])
    image = condition["image_latents"][:, None].expand(-1, 3, -1, -1, -1)
    facts = torch.tensor([[6.0, 127.0, 0.02]]).expand(3, 3)
    tokens = condition["tokens"]
    output = model.unet(torch.cat([scaled, image], 2), scheduler.timesteps[0], tokens, added_time_ids=facts).sample
    wanted = scheduler.step(output, scheduler.timesteps[0], noisy).pred_original_sample
    got = model.predict(noisy, sigma.expand(3), condition)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_weight_of_svd_makes_the_loss_that_of_the_raw_output(tiny_svd: Path):
    """λ(σ)·|D − x|² = |F − F*|² with F* the network output that denoises perfectly, in float64 (EDM, table 1)."""
    model = StableVideoDiffusion(path=str(tiny_svd))
    sigma = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    x, n, raw = torch.randn(3, 3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wide = sigma[:, None]
    noisy = x + wide * n
    denoised = noisy / (wide**2 + 1) - raw * wide / (wide**2 + 1).sqrt()
    perfect = (noisy / (wide**2 + 1) - x) * (wide**2 + 1).sqrt() / wide
    weighted = model.schedule.weight(sigma) * (denoised - x).square().mean(1)
    torch.testing.assert_close(weighted, (raw - perfect).square().mean(1), rtol=1e-10, atol=1e-12)


def test_the_temporal_decoder_starts_as_the_image_decoder(tiny_codec: Path):
    image, video = KLCodec(path=str(tiny_codec)), temporal_from(path=str(tiny_codec))
    latents = image.encode(frames(2))["latents"]
    assert torch.equal(latents, video.encode(frames(2))["latents"])
    one_by_one = image.model.decode(latents.flatten(0, 1)).sample
    together = video.model.decode(latents.flatten(0, 1), num_frames=2).sample
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stream", ["noise", "timestep"])
def test_draws_depend_on_name_step_and_position_alone(stream: str):
    whole = Rng(7, 3, range(6)).normal(stream, (4,))
    assert torch.equal(whole[2:5], Rng(7, 3, [2, 3, 4]).normal(stream, (4,)))
    assert not torch.equal(whole, Rng(7, 4, range(6)).normal(stream, (4,)))
    assert not torch.equal(whole, Rng(7, 3, range(6)).normal("other", (4,)))
    torch.rand(1)  # a global draw in between changes nothing
    assert torch.equal(whole, Rng(7, 3, range(6)).normal(stream, (4,)))


def test_spread_draws_are_even_in_a_batch_uniform_over_many_and_the_same_on_any_rank():
    batch = Rng(7, 3, range(40, 48)).spread("sigma")
    assert torch.equal(batch[2:5], Rng(7, 3, [42, 43, 44]).spread("sigma"))
    assert not torch.equal(batch, Rng(7, 4, range(40, 48)).spread("sigma"))
    gaps = batch.sort().values.diff()
    assert gaps.max() < 2 / 8
    assert gaps.min() > 0.5 / 8  # of eight independent draws the closest are 0.016 apart
    many = torch.cat([Rng(7, step, range(8 * step, 8 * step + 8)).spread("sigma") for step in range(500)])
    assert (torch.histc(many, 10, 0, 1) - 400).abs().max() < 40


def test_each_word_is_one_token_and_other_text_falls_apart():
    words = ["red", "green", "square", "growing", "circle", "circling", ","]
    tokenizer = word_tokenizer(words, 16)
    for word in words:
        assert len(tokenizer(word).input_ids) == 3  # begin, word, end
    assert tokenizer.decode(tokenizer("green qux").input_ids, skip_special_tokens=True).split() == ["green", "qux"]
    assert word_tokenizer(words[::-1], 16).get_vocab() == tokenizer.get_vocab()
