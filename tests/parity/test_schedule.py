"""Laws of the schedules, in float64: against diffusers' own formulas, and every conversion there and back."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from mmtrain.backbone import schedule
from mmtrain.backbone.schedule import Continuous, Discrete, Flow
from mmtrain.errors import UserError
from mmtrain.objective.denoise import on_prediction
from mmtrain.objective.levels import LogitNormal, shares

KINDS = ("epsilon", "sample", "v_prediction", "flow")
LEVELS = torch.tensor([3, 250, 700, 998])


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_discrete_noise_and_target_are_those_of_diffusers(kind: str):
    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    ours = Discrete(theirs.config)
    ours.kept = theirs.alphas_cumprod
    x, noise = double(4, 3, 5), double(4, 3, 5, seed=1)
    alpha, sigma = ours.signal(LEVELS)
    same(schedule.mix(x, noise, alpha, sigma), theirs.add_noise(x, noise, LEVELS))
    wanted = noise if kind == "epsilon" else theirs.get_velocity(x, noise, LEVELS)
    same(schedule.target(ours.kind, x, noise, alpha, sigma), wanted)


def test_flow_noise_and_levels_are_those_of_diffusers():
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), Flow(shift=3.0)
    levels = ours.at(torch.arange(1, 1001, dtype=torch.float64).flip(0) / 1000)
    torch.testing.assert_close(levels, theirs.sigmas, rtol=1e-6, atol=0)  # both are float32
    x, noise, sigma = double(4, 3, 5), double(4, 3, 5, seed=1), theirs.sigmas[LEVELS].double()
    wanted = sigma[:, None, None] * noise + (1 - sigma[:, None, None]) * x
    same(schedule.mix(x, noise, *ours.signal(sigma)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_each_prediction_gives_back_what_it_was_made_of(kind: schedule.Prediction):
    ours = Flow(shift=2.0) if kind == "flow" else Discrete(DDPMScheduler(prediction_type="sample").config)
    alpha, sigma = ours.signal(ours.at(torch.tensor([0.01, 0.3, 0.6, 0.9], dtype=torch.float64)))
    x, noise = double(4, 3, 5), double(4, 3, 5, seed=1)
    noisy = schedule.mix(x, noise, alpha, sigma)
    perfect = schedule.target(kind, x, noise, alpha, sigma)
    same(schedule.denoised(kind, perfect, noisy, alpha, sigma), x)
    same(schedule.noise_of(kind, perfect, noisy, alpha, sigma), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_carry_over_from_what_is_predicted_to_x(kind: schedule.Prediction):
    ours = Flow(shift=2.0) if kind == "flow" else Discrete(DDPMScheduler(prediction_type="sample").config)
    alpha, sigma = ours.signal(ours.at(torch.tensor([0.01, 0.3, 0.6, 0.9], dtype=torch.float64)))
    x, noise, wrong = double(4, 9), double(4, 9, seed=1), double(4, 9, seed=2)
    noisy = schedule.mix(x, noise, alpha, sigma)
    guess = schedule.denoised(kind, wrong, noisy, alpha, sigma)
    error = (wrong - schedule.target(kind, x, noise, alpha, sigma)).square().mean(1)
    scale = schedule.error_scale(kind, alpha, sigma)
    torch.testing.assert_close(scale * error, (guess - x).square().mean(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weighting_means_the_same_whatever_is_predicted(kind: schedule.Prediction):
    """Weights on the prediction's error, carried over to x: 1, snr, snr + 1, min(snr, γ), √snr."""
    ours = Flow(shift=2.0) if kind == "flow" else Discrete(DDPMScheduler(prediction_type="sample").config)
    alpha, sigma = ours.signal(ours.at(torch.tensor([0.01, 0.3, 0.6, 0.9], dtype=torch.float64)))
    snr, scale = (alpha / sigma) ** 2, schedule.error_scale(kind, alpha, sigma)
    wanted = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1, "debiased": snr.sqrt()}
    wanted["min_snr"] = snr.clamp(max=5.0)
    for name, on_x in wanted.items():
        same(on_prediction(kind, name, alpha, sigma, 5.0) / scale, on_x)  # type: ignore[arg-type]


def test_min_snr_is_the_formula_of_its_paper():
    """Hang et al. 2023, section 3.4: min(snr, γ) / snr for ε and min(snr, γ) / (snr + 1) for v."""
    alpha = torch.linspace(0.05, 0.999, 7, dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    snr = alpha**2 / sigma**2
    same(on_prediction("epsilon", "min_snr", alpha, sigma, 5.0), snr.clamp(max=5) / snr)
    same(on_prediction("v_prediction", "min_snr", alpha, sigma, 5.0), snr.clamp(max=5) / (snr + 1))


def test_edm_weighs_x_as_v_prediction_does():
    sigma = torch.tensor([0.01, 1.0, 40.0], dtype=torch.float64)
    ours = Continuous(mean=0.7, deviation=1.6)
    same(ours.weight(sigma), on_prediction("sample", "v_prediction", *ours.signal(sigma), 5.0))


def test_draws_have_the_quantiles_of_their_distributions():
    even = torch.tensor([0.1587, 0.5, 0.8413], dtype=torch.float64)  # one deviation below, middle, one above
    torch.testing.assert_close(
        Continuous(mean=0.7, deviation=1.6).at(even).log(), torch.tensor([-0.9, 0.7, 2.3]), atol=2e-3, rtol=0
    )
    drawn = LogitNormal(mean=0.5, deviation=2.0)(even)
    torch.testing.assert_close(drawn.logit(), torch.tensor([-1.5, 0.5, 2.5]).double(), atol=2e-3, rtol=0)
    shifted = LogitNormal(mean=0.0, deviation=1.0, shift=3.0)(even)
    assert math.isclose(float(shifted[1]), 0.75)


def test_an_expert_sees_its_own_levels_alone():
    fractions = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    high, low = Flow(shift=5.0, low=0.875).at(fractions), Flow(shift=5.0, high=0.875).at(fractions)
    assert 0.875 < float(high.min()) < 0.88
    assert float(high.max()) > 0.999
    assert float(low.min()) < 0.01
    assert 0.87 < float(low.max()) < 0.875


def test_losses_are_told_apart_by_the_noise_in_them():
    sigma = torch.tensor([0.1, 0.3, 0.35, 0.9])
    found = shares(torch.tensor([1.0, 2.0, 4.0, 8.0]), 1 - sigma, sigma)
    values = list(found.values())
    assert [float(v) for v in values[:2]] == [1.0, 3.0]
    assert values[2].isnan()
    assert float(values[3]) == 8.0


def test_epsilon_at_pure_noise_is_refused():
    config = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon").config
    with pytest.raises(UserError, match="zero terminal SNR"):
        Discrete(config)
