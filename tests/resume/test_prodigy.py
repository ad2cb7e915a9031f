"""Prodigy held and put back goes on to the bit, what it has found for all weights included."""

import pytest
import torch

from mmtrain.train.optim import Rate
from mmtrain.train.prodigy import Prodigy

pytest.importorskip("prodigyopt")


def weights() -> dict[str, torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a/up": (4, 3), "a/zero": (3,), "b/down": (3, 4)}
    made = {name: torch.nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}
    made["a/zero"].data.zero_()  # as LoRA starts
    return made


def trained(own: dict[str, torch.nn.Parameter], optim: Rate, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * optim.rate(step, 40)
        optimizer.zero_grad()
        loss = sum((weight - 0.5).square().sum() for weight in own.values())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


def test_it_goes_on_to_the_bit_and_finds_a_step_size():
    optim = Prodigy(warmup=3)
    whole, cut = weights(), weights()
    without = optim.optimizer(whole)
    trained(whole, optim, without, range(40))
    assert without.param_groups[0]["d"] > 1e-3, "a thousand times what it started from"
    first = optim.optimizer(cut)
    trained(cut, optim, first, range(17))
    saved = {name: tensor.clone() for name, tensor in optim.held(first, cut).items()}
    again = optim.optimizer(cut)
    optim.refill(again, cut, saved)
    trained(cut, optim, again, range(17, 40))
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name]), name
    assert again.param_groups[0]["d"] == without.param_groups[0]["d"]
