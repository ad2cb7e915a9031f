"""Muon: its steps are orthogonal and as large as AdamW's, and held and put back it goes on to the bit."""

import pytest
import torch

from mmtrain.errors import UserError
from mmtrain.train import muon
from mmtrain.train.muon import Muon, orthogonal

STEPS = 30


def weights() -> dict[str, torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a/up": (4, 3), "a/zero": (3,), "a/convolution": (6, 2, 3, 3), "b/down": (3, 4)}
    made = {name: torch.nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}
    made["a/zero"].data.zero_()
    return made


def trained(own: dict[str, torch.nn.Parameter], optim: Muon, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * optim.rate(step, STEPS)
        optimizer.zero_grad()
        loss = sum((weight - 0.5).square().sum() for weight in own.values())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


@pytest.mark.parametrize("shape", [(4, 4), (16, 90), (90, 16), (1, 7)])
def test_orthogonal_keeps_directions_and_makes_them_equally_long(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, _ = orthogonal([matrix, matrix.mT.flip(0)])
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ found @ right.mT  # diagonal where singular vectors are kept
    assert torch.allclose(turned - turned.diag().diag(), torch.zeros_like(turned), atol=1e-8)
    kept = torch.linalg.svdvals(matrix) > 0.05 * matrix.norm()
    assert ((turned.diag()[kept] > 0.6) & (turned.diag()[kept] < 1.3)).all()


def test_zeros_have_no_step():
    assert torch.equal(orthogonal([torch.zeros(3, 5)])[0], torch.zeros(3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_of_one_side_go_together_as_they_do_alone(dtype: torch.dtype):
    draw = torch.Generator().manual_seed(2)
    given = [torch.randn(shape, generator=draw).to(dtype) for shape in [(16, 90), (144, 16), (16, 16)]]
    for matrix, found in zip(given, orthogonal(given), strict=True):
        alone, step = matrix.double() / matrix.double().norm(), found.double()
        for _ in range(5):  # the iteration as it was published
            square = alone @ alone.mT
            alone = 3.4445 * alone + (-4.775 * square + 2.0315 * square @ square) @ alone
        assert found.dtype == dtype
        assert (step - alone).norm() < (1e-4 if dtype == torch.float32 else 5e-3) * alone.norm()


def test_matrices_too_many_to_stack_take_the_same_step(monkeypatch: pytest.MonkeyPatch):
    own = {f"a/{i}": torch.nn.Parameter(torch.randn(3, 4 + i)) for i in range(5)}
    apart = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in own.items()}
    trained(own, (optim := Muon(lr=0.05)), optim.optimizer(own), range(3))
    monkeypatch.setattr(muon, "_BUNCH", 9)  # numbers: fewer than two of them hold
    trained(apart, optim, optim.optimizer(apart), range(3))
    for name, weight in own.items():
        assert torch.allclose(weight, apart[name], atol=1e-6), name


def test_a_step_of_a_convolution_is_as_large_as_that_of_adamw_and_has_the_gradients_signs():
    optim, own = Muon(lr=0.1, schedule="constant"), weights()
    before = {name: weight.detach().clone() for name, weight in own.items()}
    trained(own, optim, optim.optimizer(own), range(1))
    step = before["a/convolution"] - own["a/convolution"].detach()
    assert 0.1 * 0.2 * 0.5 < step.square().mean().sqrt() < 0.1 * 0.2 * 1.3
    assert (step * (before["a/convolution"] - 0.5)).sum() > 0, "downhill"
    vector = before["a/zero"] - own["a/zero"].detach()
    assert torch.allclose(vector, torch.full((3,), -0.1), atol=1e-5), "AdamW's first step is the rate"


def test_matrices_come_nearer_and_a_rate_has_its_scale():
    optim, own = Muon(lr=0.05, scales={"b": 0.0}), weights()
    before = {name: (weight.detach() - 0.5).norm() for name, weight in own.items()}
    trained(own, optim, optim.optimizer(own), range(STEPS))
    for name in ("a/up", "a/convolution", "a/zero"):
        assert (own[name].detach() - 0.5).norm() < 0.95 * before[name], name
    assert (own["b/down"].detach() - 0.5).norm() == before["b/down"]


def test_it_goes_on_to_the_bit():
    optim = Muon(lr=0.05, warmup=3, adamw=["b"])
    whole, cut = weights(), weights()
    trained(whole, optim, optim.optimizer(whole), range(STEPS))
    first = optim.optimizer(cut)
    trained(cut, optim, first, range(13))
    saved = {name: tensor.clone() for name, tensor in optim.held(first, cut).items()}
    parts = {"a/up": {"momentum"}, "a/convolution": {"momentum"}}
    for name in cut:
        kept = {key.rpartition("/")[2] for key in saved if key.rpartition("/")[0] == name}
        assert kept == parts.get(name, {"step", "exp_avg", "exp_avg_sq"}), name
    again = optim.optimizer(cut)
    optim.refill(again, cut, saved)
    trained(cut, optim, again, range(13, STEPS))
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name]), name


@pytest.mark.parametrize("wrong", [{"adamw": ["c"]}, {"scales": {"c": 1.0}}])
def test_an_adapter_that_is_not_there_is_named(wrong: dict):
    with pytest.raises(UserError, match=r"'c'.*adapters: a, b"):
        Muon(lr=1.0, **wrong).optimizer(weights())


def test_a_momentum_of_one_is_refused():
    with pytest.raises(UserError, match="momentum"):
        Muon(lr=1.0, momentum=1.0)
