"""The plan of an alignment: towers as published, and memory as a step of the run's objective then really takes."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.backbone import outline
from mmtrain.batch import Batch
from mmtrain.rng import Rng
from mmtrain.train import plan as planning
from mmtrain.train import plan_alignment
from mmtrain.train.devices import Device
from mmtrain.train.measure import measured

COUNTED = {
    "openai/clip-vit-large-patch14": (transformers.CLIPModel, 427_616_513),
    "openai/clip-vit-base-patch32": (transformers.CLIPModel, 151_277_313),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (transformers.CLIPModel, 986_109_441),
    "google/siglip-base-patch16-224": (transformers.SiglipModel, 203_155_970),
    "openai-community/gpt2": (transformers.AutoModel, 124_439_808),
    # ViT-B/16 without its head, and in each layer attention over time, a norm and a linear layer; eight times
    "facebook/timesformer-base-finetuned-k400": (
        transformers.TimesformerModel,
        85_798_656 + 12 * (4 * 768**2 + 4 * 768 + 2 * 768 + 768**2 + 768) + 8 * 768,
    ),
}
WORDS = ["trainer.batch_size=8", "dataset.folder=nowhere", "dataset.size=224"]


@pytest.mark.parametrize("name", COUNTED)
def test_a_real_tower_has_as_many_weights_as_were_published(name: str):
    cls, count = COUNTED[name]
    built = outline.model(cls, name, None)
    assert all(w.is_meta for w in built.parameters())
    assert sum(w.numel() for w in built.parameters()) == count == outline.published(name)["parameters"][""]


def test_real_towers_cost_what_open_clip_counts():
    """GFLOP of a picture and of a caption, from open_clip's docs/model_profile.csv (ViT-B-32: 8.82 and 5.96)."""
    made = planning.Settings(1, 1, 224, 224, False)
    rows = plan_alignment.CAPTIONS_AT_ONCE
    bare = config.compose("align_adapter", ["backbone.path=openai/clip-vit-base-patch32", "~adapters.words", *WORDS])
    backbone, _ = planning.outline(bare)
    assert plan_alignment._seen(backbone, made).flops == pytest.approx(8.82e9, rel=0.02)
    assert plan_alignment._read(backbone).flops / rows == pytest.approx(5.96e9, rel=0.02)


RUNS: dict[str, tuple[str, list[str]]] = {
    "bottlenecks inside": ("align_adapter", []),
    "pieces": ("align_adapter", ["trainer.accumulate=4"]),
    "16 bits": ("align_adapter", ["trainer.precision=bf16-mixed"]),
    "16 bits in pieces": ("align_adapter", ["trainer.precision=bf16-mixed", "trainer.accumulate=2"]),
    "lora": ("align_adapter", ["adapter@adapters.words=lora_clip"]),
    "from the cache": ("align_fewshot", []),
    "from pixels, on top": ("align_fewshot", ["cache=null"]),
    "tiles": ("align_fewshot", ["objective.tile=16", "trainer.batch_size=256"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_peak_memory_is_what_a_step_on_this_machine_takes(name: str, tiny_clip: Path):
    recipe, changes = RUNS[name]
    cfg = config.compose(recipe, [f"backbone.path={tiny_clip}", *WORDS, *changes])
    made = planning.plan(cfg)
    backbone = config.build(cfg.backbone)
    adapters = attached(backbone, cfg.adapters)
    compare(cfg, made, backbone, adapters)


def compare(cfg: Any, made: planning.Plan, backbone: Any, adapters: dict[str, Any]) -> None:
    """The plan computes nothing; the step here computes everything. Bytes that are held are counted the same way."""
    inside = {id(w): w for w in [*backbone.parameters(), *backbone.buffers()]}
    inside |= {id(w): w for adapter in adapters.values() for w in adapter.named_weights().values()}
    held = sum(w.numel() * w.element_size() for w in inside.values())
    s, objective = made.settings, config.build(cfg.objective)
    captions = ["a red circle moving left on black" for _ in range(s.batch_size)]
    keys = [str(i) for i in range(s.batch_size)]
    features = backbone.encode(torch.zeros(1, s.frames, 3, s.height, s.width))["visual_features"]
    if cfg.cache is not None:
        backbone.recall(captions, backbone.table(captions, lambda done, total: None))

    def work() -> None:
        batch = Batch(keys, list(range(s.batch_size)), captions)
        if cfg.cache is None:
            batch.frames = torch.zeros(s.batch_size, s.frames, 3, s.height, s.width)
        else:
            batch.encoded = {"visual_features": torch.ones(s.batch_size, *features.shape[1:])}
        with torch.autocast("cpu", torch.bfloat16) if s.sixteen else nullcontext():
            loss = objective(backbone, batch, Rng(0, 0, batch.positions), s.pieces)
        (loss.per_sample.sum() / len(batch)).backward()

    real = measured(work, outline=False)
    state = (8 + 4 * (cfg.trainer.ema is not None)) * made.trainable
    assert made.phases["step"] - held - state == pytest.approx(real.peak, rel=0.1), "activations and gradients"
    assert all(w.grad is not None for adapter in adapters.values() for w in adapter.named_weights().values())


@pytest.mark.parametrize("recipe", ["align_siglip", "align_video", "align_world", "pretrain_clip"])
def test_peak_memory_of_towers_that_train(recipe: str):
    cfg = config.compose(recipe, ["trainer.batch_size=4", "dataset.shards=nowhere"])
    made = planning.plan(cfg)
    backbone = config.build(cfg.backbone)
    compare(cfg, made, backbone, attached(backbone, cfg.adapters))


def test_pieces_and_16_bits_are_advised_where_a_step_does_not_fit(tiny_clip: Path):
    cfg = config.compose("align_adapter", [f"backbone.path={tiny_clip}", *WORDS, "trainer.batch_size=16"])
    made = planning.plan(cfg)
    room = made.phases["load"] + (made.phases["step"] - made.phases["load"]) / 2
    card = Device("a small card", int(room / planning.SPARE), 1e12, 2e12)
    fit = planning.what_fits(cfg, made, card)
    assert fit is not None
    assert fit.sixteen
    assert fit.batch_size == 16, "another batch would have other negatives"
    assert fit.pieces > 1
    said = "\n".join(planning.words(made, card, fit))
    assert f"would fit with trainer.accumulate={fit.pieces} trainer.precision=bf16-mixed" in said
    changed = [f"trainer.accumulate={fit.pieces}", "trainer.precision=bf16-mixed"]
    fitting = planning.plan(config.compose("align_adapter", [f"backbone.path={tiny_clip}", *WORDS, *changed]))
    assert fitting.phases["step"] <= room
