"""Cheaper steps have the same numbers: frozen convolutions, blocks computed again, attention to one token."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmtrain.adapter.bridge import Bridge
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.flat_convolution import FlatConv3d, flatten
from mmtrain.backbone.frozen import spare
from mmtrain.backbone.one_token import OneToken, shorten
from mmtrain.backbone.plain_attention import WrittenOut, write_out
from mmtrain.backbone.recompute import blocks, recompute
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.rng import Rng
from mmtrain.train.lighten import lighten
from mmtrain.train.measure import measured
from mmtrain.train.schedule import Fit

BATCH = 2


def made(family: str, path: Path, *, targets: Any = "attention", dropout: float = 0.0) -> tuple[Any, LoRA]:
    """A backbone with LoRA that is no longer fresh: every weight of it has a gradient."""
    model = StableDiffusion(path=str(path)) if family == "sd" else StableVideoDiffusion(path=str(path))
    lora = LoRA(rank=2, alpha=2, targets=targets, dropout=dropout)
    lora.attach(model)
    draw = torch.Generator().manual_seed(0)
    for weight in lora.named_weights().values():
        weight.data = torch.randn(weight.shape, generator=draw) * 0.1
    model.train(dropout > 0)
    return model, lora


def given(model: Any, side: int = 32, tokens: int = 1) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    latents, level, condition = model.example(BATCH, 3, side, side)
    told = {name: torch.randn(part.shape, generator=draw) for name, part in condition.items()}
    if "tokens" in told:
        told["tokens"] = torch.randn(BATCH, tokens, model.conditioning_width, generator=draw)
    return torch.randn(latents.shape, generator=draw), level + 1, told


def gradients(model: Any, lora: LoRA, *, tokens: int = 1) -> dict[str, torch.Tensor]:
    """The output and every gradient of one step, dropout keyed as in training."""
    with Rng(0, 0, range(BATCH)).dropout():
        found = model.predict(*given(model, tokens=tokens))
    found.square().mean().backward()
    named = {name: weight.grad for name, weight in lora.named_weights().items()}
    return {"output": found.detach(), **{n: torch.empty(0) if g is None else g.clone() for n, g in named.items()}}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert len(first) > 8
    assert all(part.abs().sum() > 0 for part in first.values()), "a parity of zeros"
    return all(torch.equal(part, second[name]) for name, part in first.items())


@pytest.mark.parametrize("family", ["sd", "svd"])
def test_frozen_convolutions_and_recomputed_blocks_change_no_bit(family: str, tiny_sd: Path, tiny_svd: Path):
    path = tiny_sd if family == "sd" else tiny_svd
    plain = gradients(*made(family, path))
    for change in (spare, recompute, lambda network: (spare(network), recompute(network))):
        model, lora = made(family, path)
        change(model.network)
        assert same(plain, gradients(model, lora))


def test_a_block_that_is_computed_again_is_steered_again(tiny_svd: Path, tiny_clip: Path):
    found = []
    for change in (None, recompute):
        model = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
        bridge = Bridge(tokens=1, width=8, heads=2, code=4)
        torch.manual_seed(0)
        bridge.attach(model)
        for weight in bridge.steering.values():
            nn.init.normal_(weight)
        model.unet.conv_in.requires_grad_(True)
        if change is not None:
            change(model.network)
        given_now = given(model)
        model.predict(*given_now).square().mean().backward()
        trained = [model.unet.conv_in.weight, *bridge.steering.values()]
        found.append([weight.grad for weight in trained])
        model.zero_grad()
        for weight in bridge.steering.values():
            nn.init.zeros_(weight)
        model.predict(*given_now).square().mean().backward()
        assert not torch.equal(model.unet.conv_in.weight.grad, found[-1][0]), "steering must matter"
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


def test_dropout_draws_the_same_masks_when_a_block_is_computed_again(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch):
    plain = gradients(*made("sd", tiny_sd, dropout=0.3))
    model, lora = made("sd", tiny_sd, dropout=0.3)
    recompute(model.network)
    assert same(plain, gradients(model, lora))
    monkeypatch.setattr("mmtrain.backbone.recompute.computed_again", partial(checkpoint, use_reentrant=False))
    assert not same(plain, gradients(model, lora)), "this test must see other masks"


def test_what_a_step_keeps_is_less(tiny_svd: Path):
    """Bytes at the worst moment, of real steps; the network's blocks are small beside what it keeps in all."""

    def peak(*changes: Any) -> int:
        model, _ = made("svd", tiny_svd)
        for change in changes:
            change(model.network)
        latents, level, condition = given(model, side=64)
        return measured(lambda: model.predict(latents, level, condition).square().mean().backward(), outline=False).peak

    stock, sparing, again = peak(), peak(spare), peak(spare, shorten, recompute)
    assert sparing < 0.9 * stock
    assert again < 0.6 * sparing


def test_attention_to_one_token_is_its_value(tiny_svd: Path):
    targets = ["*.attn1.to_*", "*.attn2.to_v", "*.attn2.to_out.0"]
    plain = gradients(*made("svd", tiny_svd, targets=targets))
    model, lora = made("svd", tiny_svd, targets=targets)
    assert shorten(model.network) == sum(name.endswith("attn2") for name, _ in model.network.named_modules()) > 3
    short = gradients(model, lora)
    for name, part in plain.items():
        torch.testing.assert_close(short[name], part, rtol=1e-4, atol=1e-6)
    flops = [_flops(made("svd", tiny_svd, targets=targets)[0]), _flops(model)]
    assert flops[1] < flops[0], "queries and keys are not computed"
    with torch.no_grad():
        stock, _ = made("svd", tiny_svd, targets=targets)
        assert torch.equal(model.predict(*given(model)), stock.predict(*given(stock))), "sampling is the stock way"


def _flops(model: Any) -> int:
    told = given(model)
    return measured(lambda: model.predict(*told).mean().backward(), outline=False).flops


def test_several_tokens_and_trained_queries_go_the_stock_way(tiny_svd: Path):
    plain = gradients(*made("svd", tiny_svd), tokens=3)
    model, lora = made("svd", tiny_svd)
    shorten(model.network)
    assert same(plain, gradients(model, lora, tokens=3))
    trained, _ = made("svd", tiny_svd, targets=["*.attn2.to_q", "*.attn2.to_v"])
    assert shorten(trained.network) == 0
    assert not any(isinstance(m.processor, OneToken) for m in trained.network.modules() if hasattr(m, "processor"))


@pytest.mark.parametrize("family", ["sd", "svd"])
def test_written_out_attention_is_as_exact_in_16_bits(family: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(f"tiny_{family}")
    exact = gradients(*made(family, path))
    model, lora = made(family, path)
    assert write_out(model.network) == sum(isinstance(m, Attention) for m in model.network.modules()) > 3
    assert same(exact, gradients(model, lora)), "32 bits go the stock way"

    stock, told = made(family, path), given(model)
    with torch.autocast("cpu", torch.bfloat16):
        off = [_off(exact, gradients(*one)) for one in (stock, (model, lora))]
        with torch.no_grad():
            assert torch.equal(model.predict(*told), stock[0].predict(*told)), "sampling is the stock way"
        assert not torch.equal(model.predict(*told), stock[0].predict(*told)), "training is another way"
    assert 0 < off[1] < 1.5 * off[0]
    assert off[0] != off[1]


def _off(exact: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """Relative error of all gradients together."""
    wrong = sum((found[name] - part).square().sum().item() for name, part in exact.items())
    return (wrong / sum(part.square().sum().item() for part in exact.values())) ** 0.5


def test_convolutions_over_frames_are_flat_in_training_alone(tiny_svd: Path):
    exact = made("svd", tiny_svd, targets=["*.temporal_res_block.conv*"])
    model, lora = made("svd", tiny_svd, targets=["*.temporal_res_block.conv*"])
    over_frames = [m for m in model.network.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 1, 1)]
    assert flatten(model.network) > len(over_frames) > 3, "those of LoRA, which are 1 × 1 × 1 too"
    assert all(isinstance(m, FlatConv3d) for m in over_frames)
    wanted, found = gradients(*exact), gradients(model, lora)
    assert {n for n, part in found.items() if len(part)} == {n for n, part in wanted.items() if len(part)}
    assert _off(wanted, found) < 1e-5
    told = given(model)
    with torch.no_grad():
        assert torch.equal(model.predict(*told), exact[0].predict(*told)), "sampling is the stock way"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.predict(*told), exact[0].predict(*told)), "so are 16 bits"


def test_only_convolutions_over_frames_are_flat():
    others = nn.Sequential(
        nn.Conv3d(2, 2, 3, padding=1),
        nn.Conv3d(2, 2, (3, 1, 1), padding="same"),
        nn.Conv3d(2, 2, (3, 1, 1), padding=(1, 0, 0), padding_mode="replicate"),
        nn.Conv3d(2, 2, (3, 1, 1), stride=(2, 1, 1)),
        nn.Conv3d(2, 2, (3, 1, 1), groups=2),
    )
    assert flatten(others) == 0
    layer = nn.Conv3d(2, 4, (5, 1, 1), padding=(2, 0, 0), bias=False)
    x = torch.randn(3, 2, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted = layer(x)
    assert flatten(layer) == 1
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)


def test_long_attention_stays_fused_and_a_fit_installs_the_short_way(tiny_svd: Path, monkeypatch: pytest.MonkeyPatch):
    model, _ = made("svd", tiny_svd)
    lighten(model, Fit(steps=1, batch_size=1))
    inner = [getattr(m.processor, "stock", None) for m in model.network.modules() if isinstance(m, Attention)]
    assert any(isinstance(p, WrittenOut) for p in inner), "behind attention to one token"
    stock, _ = made("svd", tiny_svd)
    monkeypatch.setattr("mmtrain.backbone.plain_attention.LONGEST", 1)
    shorten(stock.network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.predict(*given(model)), stock.predict(*given(stock)))


def test_a_trained_convolution_still_gets_its_gradient():
    layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, groups=2, stride=2))
    spare(layer)
    layer[0].requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer(x).square().sum().backward()
    assert layer[1].weight.grad is not None
    assert layer[0].weight.grad is None
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, groups=2, stride=2))
    plain.load_state_dict(layer.state_dict())
    y = x.detach().requires_grad_()
    plain(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(layer[1].weight.grad, plain[1].weight.grad)


def test_a_network_without_blocks_cannot_be_checkpointed(tiny_sd: Path):
    class Flat:
        network = nn.Sequential(nn.Linear(2, 2))

    asked = Fit(steps=1, batch_size=1, checkpointing=True)
    with pytest.raises(UserError, match=r"trainer\.checkpointing"):
        lighten(Flat(), asked)
    model, _ = made("sd", tiny_sd)
    assert len(list(blocks(model.network))) > 5
    lighten(model, asked)
