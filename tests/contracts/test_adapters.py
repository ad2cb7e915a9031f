"""Contracts of adapters: what is attached trains, all of it; merging gives what training had; weights are strict."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain import config
from mmtrain.adapter.bottleneck import Bottleneck
from mmtrain.adapter.injected import merged
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.batch import Batch
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng

CAPTIONS = ["a red circle", "a blue square"]


def build(name: str, **changes: Any) -> Any:
    from omegaconf import OmegaConf

    from mmtrain.config.recipe import CONF

    return config.build(OmegaConf.merge(OmegaConf.load(CONF / "adapter" / f"{name}.yaml"), changes))


def backbone(name: str, svd: Path, sd: Path, clip: Path) -> Any:
    if name == "sd":
        return StableDiffusion(path=str(sd))
    return StableVideoDiffusion(path=str(svd), text_path=str(clip))


def stir(adapter: Any) -> None:
    for i, weight in enumerate(adapter.named_weights().values()):
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))


@pytest.mark.parametrize(
    ("adapter", "on", "changes"),
    [
        ("lora_temporal", "svd", {}),
        ("lora_video", "svd", {}),
        ("bridge", "svd", {"width": 16, "heads": 2}),
        ("bridge", "svd", {"width": 16, "heads": 2, "tokens": 4}),
        ("lora", "sd", {}),
        ("bottleneck_temporal", "svd", {"width": 4}),
    ],
)
def test_every_weight_of_a_preset_gets_a_gradient(
    adapter: str, on: str, changes: dict[str, Any], tiny_svd: Path, tiny_sd: Path, tiny_clip: Path
):
    model = backbone(on, tiny_svd, tiny_sd, tiny_clip)
    trained = build(adapter, **changes)
    trained.attach(model)
    stir(trained)  # at the very start B = 0 keeps A's gradient at zero
    frames = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(["x", "y"], [0, 1], CAPTIONS, frames)
    Denoise(drop_text=0.0, drop_image=0.0)(model, batch, Rng(0, 0, [0, 1])).per_sample.sum().backward()
    # A level of 32 channels, as the tiny network has, is normed one channel at a time, which takes a shift out again.
    unseen = ("temporal_res_block.time_emb_proj", "steering.")
    weights = {n: w for n, w in trained.named_weights().items() if w.requires_grad and not any(u in n for u in unseen)}
    dead = [n for n, w in weights.items() if w.grad is None or float(w.grad.abs().max()) < 1e-9]
    assert dead == []
    frozen = {id(w) for w in trained.named_weights().values()}
    assert all(w.grad is None for w in model.parameters() if id(w) not in frozen)


def test_with_one_token_q_and_k_of_cross_attention_are_dead(tiny_svd: Path, tiny_clip: Path):
    """Why the preset leaves them out: a softmax over one element has no gradient."""
    model = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    lora = LoRA(rank=2, alpha=2, targets=["*.attn2.to_q"])
    lora.attach(model)
    stir(lora)
    frames = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(["x", "y"], [0, 1], CAPTIONS, frames)
    Denoise(drop_text=0.0, drop_image=0.0)(model, batch, Rng(0, 0, [0, 1])).per_sample.sum().backward()
    assert max(float(w.grad.abs().max()) for w in lora.named_weights().values()) < 1e-9


def test_merged_weights_give_the_adapted_output(tiny_svd: Path):
    model = StableVideoDiffusion(path=str(tiny_svd))
    lora = build("lora_temporal")
    lora.attach(model)
    x, token = torch.randn(1, 3, 8, 8, 8), torch.randn(1, 1, 24)
    facts = torch.tensor([[6.0, 127.0, 0.02]])
    with torch.no_grad():
        bare = model.unet(x, 0.3, token, added_time_ids=facts).sample
        stir(lora)
        wanted = model.unet(x, 0.3, token, added_time_ids=facts).sample
        plain = merged(model.unet)
        got = plain(x, 0.3, token, added_time_ids=facts).sample
        again = model.unet(x, 0.3, token, added_time_ids=facts).sample
    assert (wanted - bare).abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, wanted), "merging a copy must leave the model in training alone"
    assert not [n for n in plain.state_dict() if "lora" in n or "base_layer" in n]


def test_a_pattern_that_matches_nothing_is_named(tiny_svd: Path):
    model = StableVideoDiffusion(path=str(tiny_svd))
    with pytest.raises(UserError, match="no_such_layer"):
        LoRA(rank=2, alpha=2, targets=["*.no_such_layer"]).attach(model)


def test_weights_of_other_settings_are_refused(tiny_svd: Path):
    small, large = (LoRA(rank=r, alpha=2, targets=["*.attn1.to_q"]) for r in (2, 4))
    for lora in (small, large):
        lora.attach(StableVideoDiffusion(path=str(tiny_svd)))
    with pytest.raises(UserError, match="another shape"):
        large.set_weights({n: w.detach() for n, w in small.named_weights().items()})


def test_a_bottleneck_is_its_formula_behind_the_named_layers(tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    adapter = Bottleneck(width=3, targets=["*.attn1.to_out.0"], activation="relu")
    adapter.attach(model)
    stir(adapter)
    (name, layer), *_ = [(n, m) for n, m in model.network.named_modules() if n.endswith("attn1.to_out.0")]
    w = {n.removeprefix(f"{name}."): p for n, p in adapter.named_weights().items() if n.startswith(name)}
    inputs = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    wanted = z + torch.relu(z @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    torch.testing.assert_close(layer(inputs), wanted)
    assert len(adapter.named_weights()) == 4 * sum(
        n.endswith("attn1.to_out.0") for n, _ in model.network.named_modules()
    )


def test_a_bottleneck_on_what_is_not_there_is_refused(tiny_sd: Path):
    with pytest.raises(UserError, match="matches no linear layer"):
        Bottleneck(width=3, targets=["*.nowhere"]).attach(StableDiffusion(path=str(tiny_sd)))


def test_a_bottleneck_behind_a_lora_layer_stays_there_when_that_is_folded(tiny_sd: Path):
    model, other = StableDiffusion(path=str(tiny_sd)), StableDiffusion(path=str(tiny_sd))
    low, tight = LoRA(rank=2, alpha=2, targets=["*.to_out.0"]), Bottleneck(width=3, targets=["*.attn1.to_out.0"])
    for adapter in (low, tight):
        adapter.attach(model)
        stir(adapter)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 3, model.unet.config.cross_attention_dim)
    with torch.no_grad():
        live, folded, bare = (net(*inputs).sample for net in (model.unet, merged(model.unet), other.unet))
    torch.testing.assert_close(folded, live, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(folded, bare, rtol=1e-2)
    tight.attach(other)
    with pytest.raises(UserError, match="the lora first"):
        LoRA(rank=2, alpha=2, targets=["*.to_out.0"]).attach(other)


def test_a_bridge_steers_every_residual_block():
    """On the shipped network: a level of the tiny ones is normed one channel at a time, which takes it out again."""
    model = StableVideoDiffusion(path=config.shipped("svd"), text_path=config.shipped("clip"))
    bridge = build("bridge")
    bridge.attach(model)
    image = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    code = bridge.code(model.text(["a red circle moving left"]))
    condition = {"tokens": torch.zeros(1, 1, model.conditioning_width), "image_latents": image, "code": code}
    model.predict(torch.ones(1, 2, 4, 16, 16), torch.tensor([20.0]), condition).square().sum().backward()
    assert len(bridge.steering) == len(model.modulated) > 20
    assert [name for name, w in bridge.steering.items() if w.grad is None or float(w.grad.abs().max()) == 0] == []
