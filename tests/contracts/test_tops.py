"""Contracts of adapters in and on top of alignment backbones: a fresh one changes no bit, and all of it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mmtrain import config
from mmtrain.adapter.clip_adapter import ClipAdapter
from mmtrain.adapter.full import Full
from mmtrain.adapter.projection import Projection
from mmtrain.adapter.temporal import Temporal
from mmtrain.adapter.tip_adapter import TipAdapter
from mmtrain.backbone.clip import CLIP
from mmtrain.batch import Batch
from mmtrain.errors import UserError
from mmtrain.objective.contrastive import Contrastive
from mmtrain.rng import Rng

CAPTIONS = ["a red circle", "a blue square", "a red square moving left"]
SMALL: dict[str, list[str]] = {
    "projection": [],
    "temporal": ["width=8", "heads=2", "num_frames=4"],
    "clip_adapter": ["width=4"],
    "tip_adapter": ["shots=2"],
    "lora_clip": ["rank=2"],
    "dora_clip": ["rank=2"],
    "bottleneck_clip": ["width=4"],
}


def preset(name: str) -> Any:
    words = [f"+adapter@adapters.option={name}", *(f"adapters.option.{word}" for word in SMALL[name])]
    return config.build(config.compose("align_world", words).adapters.option)


def clips(t: int = 3) -> torch.Tensor:
    return torch.rand(3, t, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def embeddings(model: CLIP) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.embed_videos(clips()), model.embed_text(CAPTIONS)])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_fresh_one_changes_no_bit_and_then_every_weight_gets_a_gradient(name: str, tiny_clip: Path):
    model = CLIP(path=str(tiny_clip))
    bare = embeddings(model)
    torch.manual_seed(0)
    adapter = preset(name)
    adapter.attach(model)
    assert torch.equal(embeddings(model), bare)
    for i, weight in enumerate(adapter.named_weights().values()):
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    assert not torch.allclose(embeddings(model), bare, rtol=1e-3)
    batch = Batch(["x", "y", "z"], [0, 1, 2], CAPTIONS, clips())
    Contrastive()(model, batch, Rng(0, 0, [0, 1, 2])).per_sample.sum().backward()
    trained = adapter.named_weights()
    assert [n for n, w in trained.items() if w.grad is None or not w.grad.abs().max() > 0] == []
    mine = {id(w) for w in trained.values()}
    assert all(w.grad is None for w in model.parameters() if id(w) not in mine)


def test_patterns_are_read_in_order_and_lit_locks_the_image_side(tiny_clip: Path):
    locked, last, lit = (CLIP(path=str(tiny_clip)) for _ in range(3))
    Full(train=["*", "!vision_model.*"], freeze=[]).attach(locked)
    assert not any(w.requires_grad for w in locked.model.vision_model.parameters())
    ordered = Full(train=["!vision_model.*", "vision_model.encoder.layers.1.*"], freeze=[])
    ordered.attach(last)
    assert {n.split(".")[3] for n in ordered.named_weights()} == {"1"}
    words = config.compose("align_world", ["+adapter@adapters.option=lit"]).adapters.option
    config.build(words).attach(lit)
    assert (lit.text_is_frozen, lit.log_scale.requires_grad) == (False, True)
    assert lit.encoder_id, "the image side is locked, so it can be cached"


def test_projections_join_towers_of_different_widths(monkeypatch: pytest.MonkeyPatch, tiny_clip: Path):
    model = CLIP(path=str(tiny_clip))
    whole = model.model.text_projection
    model.model.text_projection = torch.nn.Linear(whole.in_features, 10, bias=False)
    monkeypatch.setattr(CLIP, "widths", property(lambda self: (10, 24)))
    Projection().attach(model)
    with torch.no_grad():
        assert model.embed_text(CAPTIONS).shape == model.embed_videos(clips()).shape == (3, 10)


def test_temporal_sees_the_order_of_frames_and_refuses_more_than_it_has_places_for(tiny_clip: Path):
    model, adapter = CLIP(path=str(tiny_clip)), Temporal(layers=1, heads=2, width=8, num_frames=3)
    adapter.attach(model)
    torch.nn.init.normal_(adapter.out.weight)
    with torch.no_grad():
        forth, back = model.embed_videos(clips()), model.embed_videos(clips().flip(1))
    assert (forth - back).abs().max() > 1e-3
    with pytest.raises(UserError, match="clips of 4 frames"):
        model.embed_videos(clips(4))


def test_clip_adapter_is_its_formula():
    torch.manual_seed(0)
    adapter = ClipAdapter(width=4, ratio=0.2, sides=["visual"])

    class Two:
        joined_widths = (6, 6)
        text_top, visual_top = torch.nn.ModuleList(), torch.nn.ModuleList()

    adapter.attach(Two())
    head, f = adapter.tops["visual"], torch.randn(5, 6)
    torch.nn.init.normal_(head.up.weight)
    unit = F.normalize(f, dim=-1)
    paper = 0.2 * torch.relu(unit @ head.down.weight.T) @ head.up.weight.T + 0.8 * unit
    torch.testing.assert_close(F.normalize(head(f), dim=-1), F.normalize(paper, dim=-1))


def test_tip_adapter_draws_an_example_to_its_caption_by_the_papers_affinity(tiny_clip: Path):
    model = CLIP(path=str(tiny_clip))
    adapter = TipAdapter(shots=3, alpha=0.5, beta=5.5)
    adapter.attach(model)
    with torch.no_grad():
        f, said = model.embed_videos(clips()), model.embed_text(CAPTIONS)
        adapter.remember(f, said)
        got = model.embed_videos(clips())
        unit = F.normalize(f, dim=-1)
        affinity = torch.exp(-5.5 * (1 - unit @ unit.T))
        wanted = unit + 0.5 * affinity @ F.normalize(said, dim=-1)
    torch.testing.assert_close(F.normalize(got, dim=-1), F.normalize(wanted, dim=-1))
