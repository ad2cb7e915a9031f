"""Laws of the denoising objective's options, of distillation and of fairness, on tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from mmtrain.adapter.injected import without
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone import schedule
from mmtrain.backbone.animatediff import AnimateDiff
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.wan import Wan
from mmtrain.batch import Batch
from mmtrain.errors import UserError
from mmtrain.objective.consistency import Consistency, leap
from mmtrain.objective.denoise import Denoise
from mmtrain.objective.fairness import Fair, divergence, open_caption
from mmtrain.objective.levels import LogitNormal
from mmtrain.objective.teacher import FromTeacher
from mmtrain.rng import Rng
from tests.laws.denoising import latents_and_error

POSITIONS = [4, 5, 6]
CAPTIONS = ["a red circle", "a blue square", "a red square moving left"]


def batch() -> Batch:
    pixels = torch.rand(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(["x", "y", "z"], POSITIONS, CAPTIONS, pixels)


def stirred(model: Any, amount: float = 0.1) -> LoRA:
    lora = LoRA(rank=2, alpha=2, targets="attention")
    lora.attach(model)
    for i, weight in enumerate(lora.named_weights().values()):
        weight.data += amount * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    return lora


def per_sample(model: Any, **how: Any) -> torch.Tensor:
    with torch.no_grad():
        return Denoise(drop_text=0.0, drop_image=0.0, **how)(model, batch(), Rng(0, 0, POSITIONS)).per_sample


def test_weights_and_huber_are_what_they_say(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    own = per_sample(model)
    level = Denoise().draw(model, Rng(0, 0, POSITIONS))
    alpha, sigma = model.schedule.signal(level)
    snr = alpha**2 / sigma**2
    weighted = per_sample(model, weighting="min_snr", gamma=5.0)
    torch.testing.assert_close(weighted, own * (snr.clamp(max=5) / (snr + 1)).float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(per_sample(model, huber=1e4), own, rtol=1e-4, atol=0)
    assert bool((per_sample(model, huber=0.1) < own).all())
    drawn = Denoise(levels=LogitNormal(mean=-3.0, deviation=0.1)).draw(model, Rng(0, 0, POSITIONS))
    assert int(drawn.max()) < 100


def test_places_that_move_count_more_and_a_clip_as_much_as_before(tiny_svd: Path):
    model = StableVideoDiffusion(path=str(tiny_svd))
    still = torch.rand(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = still.repeat(1, 3, 1, 1, 1)
    pixels[1:, 1:, :, :32] *= -1  # of the first clip nothing moves
    clips = Batch(["x", "y", "z"], POSITIONS, CAPTIONS, pixels)

    def loss(**how: Any) -> torch.Tensor:
        with torch.no_grad():
            return Denoise(drop_text=0.0, drop_image=0.0, **how)(model, clips, Rng(0, 0, POSITIONS)).per_sample

    assert torch.equal(loss(motion_weight=0.0), loss())
    z, error = latents_and_error(model, clips)
    weights = 1 + 4 * (z - z[:, :1]).abs().mean(2, keepdim=True)
    each = (error * weights).mean((1, 2, 3, 4)) / weights.mean((1, 2, 3, 4))
    got = loss(motion_weight=4.0)
    torch.testing.assert_close(got, each, rtol=1e-5, atol=1e-7)
    assert bool(((got - loss())[1:].abs() > 1e-3).all())


@pytest.mark.parametrize(("name", "axis"), [("animatediff", 2), ("wan", 2)])
def test_where_a_familys_frames_lie(name: str, axis: int, family: Callable[[str], Path]):
    """Its time axis is the one on which a later frame's change shows."""
    model = {"animatediff": AnimateDiff, "wan": Wan}[name](path=str(family(name)), num_frames=5)
    pixels = torch.zeros(1, 5, 3, 16, 16)
    changed = pixels.clone()
    changed[:, -1] = 1
    with torch.no_grad():
        one, other = (model.draw_latents(model.encode(p), Rng(0, 0, [0])) for p in (pixels, changed))
    apart = (one - other).abs()
    assert model.time_axis == axis
    assert float(apart.select(axis, 0).max()) == 0.0
    assert float(apart.select(axis, -1).max()) > 0.0


def test_what_moves_is_asked_of_clips_alone(tiny_sd: Path):
    with pytest.raises(UserError, match="for latents of pictures"):
        per_sample(StableDiffusion(path=str(tiny_sd)), motion_weight=1.0)
    with pytest.raises(UserError, match="0 or above"):
        Denoise(motion_weight=-1.0)


def test_the_loss_is_logged_by_how_much_noise_there_was(tiny_sd: Path):
    loss = Denoise()(StableDiffusion(path=str(tiny_sd)), batch(), Rng(0, 0, POSITIONS))
    known = [v for n, v in loss.logs.items() if n.startswith("noise ") and not v.isnan()]
    assert 1 <= len(known) <= 3


def test_the_teachers_leap_is_a_guided_ddim_step(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    scheduler = DDIMScheduler.from_config(model.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    start = scheduler.timesteps[10:11]
    drop = torch.tensor([False])
    both = [model.condition({}, [text], drop_text=drop, drop_image=drop) for text in ("a red circle", "")]
    with torch.no_grad():
        towards, away = (model.predict(noisy, start, condition) for condition in both)
        wanted = scheduler.step(away + 4 * (towards - away), int(start), noisy).prev_sample
        got = leap(model, noisy, start, start - 20, (both[0], both[1]), torch.tensor([4.0]))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_student_maps_as_the_scheduler_that_samples_it_does(tiny_sd: Path):
    """Its clean estimate is the one that `LCMScheduler` makes, and at t = 0 it is the identity."""
    model = StableDiffusion(path=str(tiny_sd), few_steps=True)
    scheduler = model.parts()["scheduler"]
    assert isinstance(scheduler, LCMScheduler)
    scheduler.set_timesteps(4)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drop = torch.tensor([False])
    condition = model.condition({}, ["a red circle"], drop_text=drop, drop_image=drop)
    level = scheduler.timesteps[1:2]
    scheduler._init_step_index(level[0])
    with torch.no_grad():
        output = model.predict(noisy, level, condition)
        wanted = scheduler.step(output, level[0], noisy, generator=torch.Generator().manual_seed(0)).denoised
        got = Consistency().consistent(model, noisy, level, condition)
        same = Consistency().consistent(model, noisy, torch.tensor([0]), condition)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(same, noisy)


def test_consistency_trains_the_adapter_alone_and_the_teacher_is_the_base(tiny_sd: Path):
    model, base = StableDiffusion(path=str(tiny_sd)), StableDiffusion(path=str(tiny_sd))
    lora = stirred(model)
    loss = Consistency(grid=10)(model, batch(), Rng(0, 0, POSITIONS))
    loss.per_sample.sum().backward()
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in lora.named_weights().values())
    assert max(float(w.grad.abs().max()) for w in lora.named_weights().values() if w.grad is not None) > 0
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 3, 16)
    with torch.no_grad(), without(model.unet):
        assert torch.equal(model.unet(*inputs).sample, base.unet(*inputs).sample)
    assert all(w.requires_grad for w in lora.named_weights().values())
    with torch.no_grad():
        assert not torch.equal(model.unet(*inputs).sample, base.unet(*inputs).sample)


def test_consistency_on_levels_that_are_no_timesteps_is_refused(tiny_svd: Path):
    with pytest.raises(UserError, match="not timesteps"):
        Consistency()(StableVideoDiffusion(path=str(tiny_svd)), batch(), Rng(0, 0, POSITIONS))


def test_a_student_that_is_its_teacher_has_only_the_task_left(tiny_sd: Path):
    model, teacher = StableDiffusion(path=str(tiny_sd)), StableDiffusion(path=str(tiny_sd))
    taught = FromTeacher(teacher=teacher, blocks=["down_blocks.*", "mid_block"], drop_text=0.0)
    with torch.no_grad():
        loss = taught(model, batch(), Rng(0, 0, POSITIONS))
    assert float(loss.logs["output"]) == 0.0
    assert float(loss.logs["features"]) == 0.0
    torch.testing.assert_close(loss.per_sample, per_sample(model), rtol=1e-5, atol=1e-6)
    stirred(model, amount=1.0)
    apart = taught(model, batch(), Rng(0, 0, POSITIONS))
    assert float(apart.logs["output"]) > 0
    assert float(apart.logs["features"]) > 0
    assert apart.per_sample.requires_grad


def test_a_guided_teacher_shows_what_vanillas_guidance_makes_of_its_two_passes(tiny_sd: Path):
    model, teacher = StableDiffusion(path=str(tiny_sd)), StableDiffusion(path=str(tiny_sd))
    how: dict[str, Any] = {"teacher": teacher, "blocks": ["mid_block"], "task": 0.0, "features": 0.0, "drop_text": 0.0}
    rng, given = Rng(0, 0, POSITIONS), batch()
    with torch.no_grad():
        latents = model.draw_latents(model.encode(given.frames), rng)
        level, noise = model.schedule.at(rng.spread("level")), rng.normal("noise", latents.shape[1:])
        noisy = schedule.mix(latents, noise, *model.schedule.signal(level))
        words, nothing = (
            model.predict(noisy, level, model.condition({}, captions, drop_text=none, drop_image=none))
            for none in [torch.zeros(3, dtype=torch.bool)]
            for captions in (CAPTIONS, ["", "", ""])
        )
        got = FromTeacher(**how, guidance=2.5)(model, given, rng)
    guided = nothing + 2.5 * (words - nothing)
    torch.testing.assert_close(got.per_sample, (words - guided).square().flatten(1).mean(1), rtol=1e-5, atol=1e-9)
    assert float(got.per_sample.min()) > 0
    with pytest.raises(UserError, match="a guided teacher alone"):
        FromTeacher(**how | {"task": 1.0}, guidance=2.5)


def test_a_student_is_taught_at_the_levels_that_are_asked_for(tiny_sd: Path):
    model, seen = StableDiffusion(path=str(tiny_sd)), []
    model.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.extend(args[1].tolist()), with_kwargs=True)
    how: dict[str, Any] = {"teacher": StableDiffusion(path=str(tiny_sd)), "blocks": ["mid_block"]}
    narrow = LogitNormal(mean=2.0, deviation=0.01)
    with torch.no_grad():
        FromTeacher(**how, levels=narrow)(model, batch(), Rng(0, 0, POSITIONS))
    assert len(seen) == 3
    assert all(abs(level - 1000 * torch.tensor(2.0).sigmoid()) < 5 for level in seen)


def test_a_teachers_prediction_is_translated_into_the_students(tiny_sd: Path):
    """What the teacher takes for x is what the student is taught, whatever the two predict."""
    model, teacher = StableDiffusion(path=str(tiny_sd)), StableDiffusion(path=str(tiny_sd))
    model.schedule.kind = "sample"
    taught = FromTeacher(teacher=teacher, blocks=["mid_block"])
    noisy, prediction = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([5, 500, 900])
    got = taught.translated(model, prediction, noisy, level)
    wanted = schedule.denoised("v_prediction", prediction, noisy, *teacher.schedule.signal(level))
    torch.testing.assert_close(got, wanted)


def test_teachers_that_do_not_fit_are_refused(tiny_sd: Path):
    model, teacher = StableDiffusion(path=str(tiny_sd)), StableDiffusion(path=str(tiny_sd))
    with pytest.raises(UserError, match="no block that both networks have"):
        FromTeacher(teacher=teacher, blocks=["nowhere"])(model, batch(), Rng(0, 0, POSITIONS))
    teacher.vae.encoder.conv_in.weight.data += 1
    with pytest.raises(UserError, match="another codec"):
        FromTeacher(teacher=teacher, blocks=["mid_block"])(model, batch(), Rng(0, 0, POSITIONS))


def test_the_divergence_is_zero_where_shares_are_those_wanted_and_falls_towards_them():
    wanted = torch.tensor([0.5, 0.3, 0.2])
    assert float(divergence(wanted, wanted)) == pytest.approx(0.0, abs=1e-6)
    skewed = torch.tensor([0.9, 0.05, 0.05])
    assert float(divergence(skewed, wanted)) > float(divergence(0.5 * skewed + 0.5 * wanted, wanted)) > 0


def test_fairness_reaches_the_adapter_through_the_picture(tiny_sd: Path, tiny_clip: Path):
    model = StableDiffusion(path=str(tiny_sd))
    lora = stirred(model)
    classes = ["a red circle", "a blue circle"]
    how = {"denoise": Denoise(), "judge": CLIP(path=str(tiny_clip)), "prompt": "a circle", "classes": classes}
    fair = Fair(**how, weight=1.0, shares=[0.9, 0.1])  # type: ignore[arg-type]
    loss = fair(model, batch(), Rng(0, 0, POSITIONS))
    plain = how["denoise"](model, batch(), Rng(0, 0, POSITIONS))  # type: ignore[operator]
    torch.testing.assert_close(loss.per_sample - loss.logs["unfair"], plain.per_sample)
    shown = [float(loss.logs[f"share of {name}"]) for name in classes]
    assert sum(shown) == pytest.approx(1.0)
    (loss.per_sample - plain.per_sample.detach()).sum().backward()
    assert max(float(w.grad.abs().max()) for w in lora.named_weights().values() if w.grad is not None) > 0
    with pytest.raises(UserError, match="sum to 1"):
        Fair(**how, shares=[0.9, 0.9])  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_for_fairness_are_those_of_vanilla(guidance: float, tiny_sd: Path, tiny_clip: Path):
    """Drawn from noise in the prompt's own words, not out of the batch's pictures, which may be fair by themselves."""
    model = StableDiffusion(path=str(tiny_sd)).eval()
    how: dict[str, Any] = {"denoise": Denoise(), "judge": CLIP(path=str(tiny_clip)), "classes": ["a", "b"]}
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    trailing = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    pipeline.scheduler = DDIMScheduler.from_config(model.scheduler.config, **trailing)
    with torch.no_grad():
        encoded = model.encode(batch().frames)
        fair = Fair(**how, prompt="a circle", steps=4, guidance=guidance)
        got = fair.shown(model, encoded, Rng(0, 0, POSITIONS))
    noise = Rng(0, 0, POSITIONS).normal("fair noise", encoded["latents"].shape[-3:])
    asked = {"prompt": ["a circle"] * 3, "guidance_scale": guidance, "num_inference_steps": 4, "output_type": "pt"}
    wanted = pipeline(**asked, latents=noise, height=64, width=64).images
    torch.testing.assert_close((got + 1) / 2, wanted, rtol=1e-3, atol=1e-4)


def test_captions_are_left_open_word_by_word(tiny_sd: Path):
    assert open_caption("A Red circle, redder than blue-green", ["red", "blue"]) == "A circle, redder than -green"
    assert open_caption("An orange circle and a red orange egg", ["red", "orange"]) == "A circle and an egg"
    assert open_caption("a red egg, an orange", ["red", "orange"]) == "an egg, a"
    model = StableDiffusion(path=str(tiny_sd))
    how: dict[str, Any] = {"denoise": Denoise(drop_text=0.0), "judge": None, "prompt": "a circle"}
    how |= {"classes": ["a red circle", "a blue circle"], "weight": 0.0, "words": ["red", "blue"]}
    fair = Fair(**how, drop_words=1.0)
    opened = batch()
    opened.captions = ["a circle", "a square", "a square moving left"]
    with torch.no_grad():
        got, wanted = (f(model, b, Rng(0, 0, POSITIONS)) for f, b in ((fair, batch()), (how["denoise"], opened)))
    torch.testing.assert_close(got.per_sample, wanted.per_sample)
    assert "unfair" not in got.logs
    chosen = [Fair(**how, drop_words=0.5).opened(batch(), Rng(0, step, POSITIONS)).captions for step in range(40)]
    left = sum(caption in opened.captions for captions in chosen for caption in captions)
    assert 36 <= left <= 84  # of 120
    with pytest.raises(UserError, match="drop_words 0.5 and 0 words"):
        Fair(**how | {"words": None}, drop_words=0.5)
    with pytest.raises(UserError, match="null at weight 0.1"):
        Fair(**how | {"weight": 0.1})
