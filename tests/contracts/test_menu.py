"""The whole menu: every YAML of conf/backbone, conf/adapter and conf/objective is built, and keeps its noun's contract.

What each computes is tested where its family is (parity, laws, the other contracts); here nothing can be left out: a
new file is walked on the day it arrives, and fails until it is said below what it stands on.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.adapter.lora import LoRA
from mmtrain.adapter.temperature import Temperature
from mmtrain.backbone.aligned import Aligned
from mmtrain.backbone.codec import Codec
from mmtrain.backbone.outline import outlined
from mmtrain.batch import Batch, Loss
from mmtrain.config.recipe import CONF
from mmtrain.export.prove import case_of
from mmtrain.objective.whole import WholeBatch
from mmtrain.rng import Rng

SD15, SVD = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-video-diffusion-img2vid-xt"
PATHS: dict[str, dict[str, Any]] = {
    "animatediff": {"path": SD15, "motion_path": "guoyww/animatediff-motion-adapter-v1-5-3"},
    "codec_wan": {"path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "subfolder": "vae"},
    "prior": {"path": "kandinsky-community/kandinsky-2-2-prior"},
    "sdxl": {"path": "stabilityai/stable-diffusion-xl-base-1.0"},
    "wan": {"path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
    "wan_i2v": {"path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"},
}
"""Published models, built as outlines, for options without a default."""

SIDES = {"clip_text", "clip_vision", "conv3d", "language", "timesformer", "pair", "pair_saved"}
"""One side of a pair, or a pair of such: `test_towers.py` walks those. What was saved of others is opened there too."""
ELSEWHERE = {"siglip", "vq"}
"""Options whose folder only a test makes: `test_towers.py`, `tests/parity/test_families.py`."""

ADAPTED = {
    "sd": ("dora", "gated", "loha", "lokr", "lora", "lora_style", "oft", "full", "words"),
    "svd": ("bottleneck_temporal", "bridge", "lora_temporal", "lora_video"),
    "animatediff_fresh": ("motion_modules",),
    "clip": ("bottleneck_clip", "clip_adapter", "dora_clip", "lit", "lora_clip", "projection", "temperature")
    + ("temporal", "tip_adapter"),
    "siglip_fresh": ("temperature_siglip",),
}
"""On what an adapter of the menu is attached here."""
FILLED = {"tip_adapter": {"shots": 3}, "words": {"words": ["<zwx>"], "like": ["red"]}}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def backbone(name: str) -> Any:
    """An option of the menu without weights: every model an outline of its config."""
    node = config.compose("align_world", [f"+backbone@adapters.option={name}"]).adapters.option
    with outlined(), torch.random.fork_rng(devices=[]):
        return config.build(OmegaConf.merge(node, PATHS.get(name, {}))).to("meta")


def test_every_option_is_walked():
    named = [name for names in ADAPTED.values() for name in names]
    assert sorted(named) == sorted({*options("adapter"), "dora"}), "say on which backbone a new adapter is tried"
    sides = {name for name in options("backbone") if name.removesuffix("_fresh") in SIDES}
    missing = {n for n in options("backbone") if "path: ???" in (CONF / "backbone" / f"{n}.yaml").read_text()}
    assert missing - sides - ELSEWHERE <= PATHS.keys(), "say which published model a new backbone is"


@pytest.mark.parametrize(
    "name", [n for n in options("backbone") if n.removesuffix("_fresh") not in SIDES and n not in ELSEWHERE]
)
def test_a_backbone_is_frozen_has_one_door_and_can_be_proved(name: str):
    made = backbone(name)
    assert not any(w.requires_grad for w in made.parameters())
    inside = {id(w) for w in made.parameters()}
    assert {id(w) for w in made.network.parameters()} <= inside
    doors = {
        "align": isinstance(made, Aligned),
        "reconstruct": isinstance(made, Codec),
        "denoise": all(hasattr(made, part) for part in ("schedule", "predict", "condition", "draw_latents", "example")),
    }
    assert sum(doors.values()) == 1, doors
    assert case_of(made) is not None, "an export that nothing proves"
    if doors["denoise"]:
        assert {"attention", "all-linear"} <= made.presets.keys()
    if doors["denoise"] and name not in PATHS:  # the door is the family's; at real size it would only take longer
        latents, level, condition = made.example(1, getattr(made, "num_frames", 1), *getattr(made, "size", (64, 64)))
        with torch.no_grad():
            assert made.predict(latents, level, condition).shape == latents.shape


@pytest.mark.parametrize(("base", "name"), [(base, name) for base, names in ADAPTED.items() for name in names])
def test_an_adapter_attaches_and_alone_trains(base: str, name: str):
    file = CONF / "adapter" / f"{'lora' if name == 'dora' else name}.yaml"
    made = backbone(base)
    node = config.compose("align_world", [f"+adapter@adapters.option={file.stem}"]).adapters.option
    adapter = config.build(OmegaConf.merge(node, FILLED.get(name, {}), {"dora": True} if name == "dora" else {}))
    with outlined():
        adapter.attach(made)
    weights = adapter.named_weights()
    own = {id(w) for w in weights.values()}
    filled_later = name == "tip_adapter"  # its memory, before the first step
    assert filled_later or any(w.requires_grad for w in weights.values())
    assert [n for n, w in made.named_parameters() if w.requires_grad and id(w) not in own] == []


CHANGES: dict[str, dict[str, Any]] = {
    "fair": {"prompt": "a circle", "classes": ["a red circle", "a blue circle"]},
    "from_teacher": {"blocks": ["down_blocks.*"]},
}


@pytest.mark.parametrize("name", options("objective"))
def test_an_objective_gives_one_loss_a_sample_that_reaches_what_trains(
    name: str, tiny_sd: Path, tiny_clip: Path, tiny_codec: Path
):
    node = OmegaConf.merge(OmegaConf.load(CONF / "objective" / f"{name}.yaml"), CHANGES.get(name, {}))
    for part, path in (("judge", tiny_clip), ("teacher", tiny_sd)):
        if part in node:
            node[part].path = str(path)
    objective = config.build(node)
    kind = "siglip" if name == "siglip" else "clip" if isinstance(objective, WholeBatch) else "sd"
    kind = "codec" if name == "reconstruct" else kind
    model = opened(kind, {"sd": tiny_sd, "clip": tiny_clip, "codec": tiny_codec, "siglip": tiny_clip}[kind])
    pixels = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = Batch(["x", "y"], [4, 5], ["a red circle", "a blue square"], pixels)

    def loss() -> Loss:
        return objective(model, given, Rng(0, 1, [4, 5]))

    first, again = loss(), loss()
    assert first.per_sample.shape == (2,)
    assert bool(first.per_sample.isfinite().all())
    assert torch.equal(first.per_sample, again.per_sample), "every draw is keyed"
    assert not any(value.requires_grad for value in first.logs.values())
    first.per_sample.sum().backward()
    grads = [w.grad for w in model.parameters() if w.requires_grad and w.grad is not None]
    assert max(float(grad.abs().max()) for grad in grads) > 0


def opened(kind: str, path: Path) -> Any:
    """A tiny backbone with something that trains: LoRA on a denoiser, all of another."""
    target = {"sd": "sd.StableDiffusion", "codec": "codec.KLCodec"}.get(kind, "clip.CLIP")
    model = config.build({"_target_": f"mmtrain.backbone.{target}", "path": str(path)})
    if kind == "sd":
        lora = LoRA(rank=2, alpha=2, targets="attention")
        lora.attach(model)
        for i, weight in enumerate(lora.named_weights().values()):  # at the very start one factor is zero
            weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        return model
    model.network.requires_grad_(True)
    if kind == "siglip":
        Temperature(scale=10.0, bias=-10.0).attach(model)
    return model
