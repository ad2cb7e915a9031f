"""Contracts of every family and every adapter on it: step zero is the base, every weight of a preset gets a gradient,
several adapters stand together, folding gives what training had."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.adapter.injected import merged
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.animatediff import AnimateDiff
from mmtrain.backbone.prior import Prior
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.sdxl import StableDiffusionXL
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.wan import Wan
from mmtrain.backbone.weights import digest
from mmtrain.batch import Batch
from mmtrain.config.recipe import CONF
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng

Open = Callable[[], Any]
SIDES = {"wan": 16, "wan_i2v": 16, "wan_i2v_by_token": 16}
ADAPTERS = {
    "lora": {"targets": "attention", "rank": 2},
    "dora": {"targets": "attention", "rank": 2, "dora": True},
    "lokr": {"targets": "attention", "rank": 2},
    "loha": {"targets": "attention", "rank": 2},
    "oft": {"targets": "attention", "block": 2},
    "gated": {"width": 8, "heads": 2},
}
FAMILIES = ("sd", "sdxl", "svd", "animatediff", "wan", "wan_i2v", "wan_i2v_by_token", "prior")


@pytest.fixture(scope="session")
def opened(family: Callable[[str], Path], tiny_sd: Path, tiny_svd: Path, tiny_clip: Path) -> Callable[[str], Any]:
    makers: dict[str, Open] = {
        "sd": lambda: StableDiffusion(path=str(tiny_sd)),
        "sdxl": lambda: StableDiffusionXL(path=str(family("sdxl"))),
        "svd": lambda: StableVideoDiffusion(path=str(tiny_svd)),
        "animatediff": lambda: moving(AnimateDiff(path=str(family("animatediff")), num_frames=3)),
        "wan": lambda: Wan(path=str(family("wan")), num_frames=5),
        "wan_i2v": lambda: Wan(path=str(family("wan_i2v")), num_frames=5, starts_from="image"),
        "wan_i2v_by_token": lambda: Wan(path=str(family("wan_i2v_by_token")), num_frames=5, starts_from="image"),
        "prior": lambda: Prior(path=str(family("prior"))),
    }
    return lambda name: makers[name]()


def moving(model: Any) -> Any:
    """As after some training: fresh motion modules end in zeros, and nothing inside them would get a gradient."""
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            weight.data += 0.1 * torch.randn(weight.shape, generator=draw)
    return model


@cache
def batch(name: str) -> Batch:
    side, frames = SIDES.get(name, 64), 5 if name.startswith("wan") else 3
    pixels = torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(["x", "y"], [0, 1], ["a red circle", "a blue square"], pixels)


def loss(model: Any, name: str) -> torch.Tensor:
    return Denoise(drop_text=0.0, drop_image=0.0)(model, batch(name), Rng(0, 0, [0, 1])).per_sample


def adapter(name: str, **changes: Any) -> Any:
    node = OmegaConf.load(CONF / "adapter" / f"{'lora' if name == 'dora' else name}.yaml")
    return config.build(OmegaConf.merge(node, ADAPTERS[name], changes))


def stir(attached: Any) -> None:
    for i, weight in enumerate(attached.named_weights().values()):
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))


def combinations() -> list[tuple[str, str]]:
    """Every adapter on one network of pictures and LoRA everywhere; gated attention where there is cross-attention."""
    everywhere = [(family, "lora") for family in FAMILIES]
    return everywhere + [("sd", name) for name in ADAPTERS if name != "lora"] + [("wan", "gated"), ("svd", "dora")]


@pytest.mark.parametrize(("name", "kind"), combinations())
def test_step_zero_trains_and_folds(opened: Callable[[str], Any], name: str, kind: str):
    model, changes = opened(name), {"width": 8, "heads": 2} if kind == "gated" else {}
    before, base = loss(model, name).detach(), model.base
    attached = adapter(kind, **changes)
    attached.attach(model)
    assert model.base == base, "an adapter is no part of the base"
    assert torch.equal(loss(model, name), before), "step zero is the base, bit for bit"
    stir(attached)  # at the very start B = 0 keeps A's gradient at zero
    trained = loss(model, name)
    trained.sum().backward()
    dead = [n for n, w in attached.named_weights().items() if w.grad is None or float(w.grad.abs().max()) < 1e-10]
    assert dead == []
    own = {id(w) for w in attached.named_weights().values()}
    assert [n for n, w in model.named_parameters() if w.requires_grad and id(w) not in own] == []
    assert not torch.allclose(trained, before, rtol=1e-5)
    if kind != "gated":
        whole = digest(merged(model.network))
        assert whole != digest(merged(opened(name).network))
        assert not [n for n, _ in merged(model.network).named_parameters() if "lora" in n or "base_layer" in n]


def test_a_folder_of_another_class_is_refused_by_name(tiny_svd: Path):
    """Left to the library, one key of its config is called faulty, far from what is wrong."""
    with pytest.raises(UserError, match="/unet: a UNetSpatioTemporalConditionModel; a UNet2DConditionModel") as refused:
        StableDiffusion(path=str(tiny_svd))
    assert refused.value.fix == "name another folder"


@pytest.mark.parametrize("name", FAMILIES)
def test_each_preset_of_a_family_names_layers(opened: Callable[[str], Any], name: str):
    model = opened(name)
    counts = {}
    for preset in model.presets:
        fresh = opened(name)
        lora = LoRA(rank=1, alpha=1, targets=preset)
        lora.attach(fresh)
        counts[preset] = len(lora.named_weights())
        of_images = {n.split(".")[-3] for n in lora.named_weights() if ".add_" in n}
        assert of_images == ({"add_k_proj", "add_v_proj"} if name == "wan_i2v" else set()), preset
    assert min(counts.values()) > 0
    assert counts["all-linear"] > counts["attention"]


def test_several_adapters_stand_together_and_each_trains(opened: Callable[[str], Any]):
    model = opened("sd")
    before = loss(model, "sd").detach()
    first, second = LoRA(rank=2, alpha=2, targets="attention"), LoRA(rank=3, alpha=6, targets=["*.attn1.to_q"])
    tight = config.build({"_target_": "mmtrain.adapter.bottleneck.Bottleneck", "width": 2, "targets": ["*.ff.net.2"]})
    for attached in (first, second, tight):
        attached.attach(model)
    assert torch.equal(loss(model, "sd"), before)
    for attached in (first, second, tight):
        stir(attached)
    loss(model, "sd").sum().backward()
    weights = [w for attached in (first, second, tight) for w in attached.named_weights().values()]
    assert len({id(w) for w in weights}) == len(weights)
    assert all(w.grad is not None and float(w.grad.abs().max()) > 0 for w in weights)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 3, model.unet.config.cross_attention_dim)
    with torch.no_grad():
        live, folded = (network(*inputs).sample for network in (model.unet, merged(model.unet)))
    torch.testing.assert_close(folded, live, rtol=1e-4, atol=1e-4)


def test_ranks_differ_by_pattern_and_one_of_nothing_is_refused(opened: Callable[[str], Any]):
    lora = LoRA(rank=2, alpha=2, targets="attention", rank_pattern={"attn1.to_q": 4})
    lora.attach(opened("sd"))
    ranks = {n.split(".attn")[1][:6]: w.shape[0] for n, w in lora.named_weights().items() if "lora_A" in n}
    assert ranks["1.to_q"] == 4
    assert ranks["2.to_q"] == ranks["1.to_k"] == 2
    with pytest.raises(UserError, match="'nowhere' matches none"):
        LoRA(rank=2, alpha=2, targets="attention", alpha_pattern={"nowhere": 4}).attach(opened("sd"))


def test_targets_that_cannot_be_are_refused(opened: Callable[[str], Any]):
    model = opened("sd")
    for targets, said in (("temporal", "one of attention"), ([], "no targets"), (["*.nowhere"], "matches no layer")):
        with pytest.raises(UserError, match=said):
            LoRA(rank=2, alpha=2, targets=targets).attach(model)
    LoRA(rank=2, alpha=2, targets=["*.attn1.to_q"]).attach(model)
    with pytest.raises(UserError, match="has a lora around it"):
        adapter("lokr", targets=["*.attn1.to_q"]).attach(model)
    with pytest.raises(UserError, match="alpha > 0"):
        LoRA(rank=2, alpha=0, targets="attention")
