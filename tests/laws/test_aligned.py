"""Laws of text beside pictures and clips: what is refused, what is cut and counted, what a cache may stand for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.adapter.lora import LoRA
from mmtrain.backbone import clip
from mmtrain.backbone.clip import CLIP
from mmtrain.batch import Batch
from mmtrain.errors import UserError

LONG = "a red circle moving left on black " * 4
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def clips(b: int, t: int, side: int = 64) -> torch.Tensor:
    return torch.rand(b, t, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def stacked(frames: int) -> CLIP:
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 32, "patch_size": 16, "num_channels": 3 * frames}
    return clip.fresh(words=["red", "circle"], max_tokens=12, text=TOWER, vision=vision, width=8)


def test_a_clip_is_the_mean_of_its_frames_and_an_image_a_clip_of_one(tiny_clip: Path):
    model, frames = CLIP(path=str(tiny_clip)), clips(2, 3)
    with torch.no_grad():
        each = torch.stack([model.embed_images(frames[:, t]) for t in range(3)])
        torch.testing.assert_close(model.embed_videos(frames), each.mean(0))


def test_features_on_their_way_through_a_cache_give_the_same_embeddings(tiny_clip: Path):
    model, frames, words = CLIP(path=str(tiny_clip)), clips(2, 3), ["a red circle", "a blue square"]
    with torch.no_grad():
        wanted = model.embed_videos(frames), model.embed_text(words)
        model.recall(words, model.table(words, lambda done, total: None))
        model.model.text_model.forward = None  # whoever runs the tower now fails
        cached = Batch(["x", "y"], [0, 1], words, None, model.encode(frames))
        assert torch.equal(model.embed_visual(cached), wanted[0])
        torch.testing.assert_close(model.embed_text(words[::-1]), wanted[1].flip(0))


def test_features_of_another_encoder_are_refused(tiny_clip: Path):
    batch = Batch(["x"], [0], ["a"], None, {"latents": torch.zeros(1, 4)})
    with pytest.raises(UserError, match="latents"):
        CLIP(path=str(tiny_clip)).embed_visual(batch)


@pytest.mark.parametrize("pattern", ["vision_model.*.q_proj", "text_model.*.q_proj"])
def test_what_trains_inside_a_tower_is_not_cached(pattern: str, tiny_clip: Path):
    model, words = CLIP(path=str(tiny_clip)), ["a red circle"]
    LoRA(rank=2, alpha=2, targets=[pattern]).attach(model)
    if pattern.startswith("vision"):
        with pytest.raises(UserError, match="inside the visual tower"):
            _ = model.encoder_id
        return
    assert model.encoder_id == CLIP(path=str(tiny_clip)).encoder_id
    model.recall(words, torch.zeros(1, 24))
    assert model.embed_text(words).abs().max() > 0, "a text tower that trains must run"


@pytest.mark.parametrize("captions", [["a red circle", ""], ["  \n"]])
def test_an_empty_caption_is_refused(captions: list[str], tiny_clip: Path):
    with pytest.raises(UserError, match=rf"caption {len(captions)} of {len(captions)} is empty"):
        CLIP(path=str(tiny_clip)).embed_text(captions)


def test_a_long_caption_is_refused_or_cut_and_counted(tiny_clip: Path):
    with pytest.raises(UserError, match="at most 16"):
        CLIP(path=str(tiny_clip)).embed_text([LONG])
    model = CLIP(path=str(tiny_clip), long_captions="truncate")
    with torch.no_grad():
        cut = model.embed_text([LONG, "a red circle", LONG])
        kept = model.embed_text([" ".join(LONG.split()[:14])])  # 16 tokens with begin and end
    assert torch.equal(cut[0], cut[2])
    torch.testing.assert_close(cut[:1], kept)
    assert model.truncated == {LONG}


def test_a_tower_that_stacks_frames_sees_all_of_them_and_refuses_images():
    model, frames = stacked(2), clips(1, 4, 32)
    with pytest.raises(UserError, match=r"1 frame\(s\).*at least 2"):
        model.embed_images(frames[:, 0])
    with torch.no_grad():
        whole, ends = model.embed_videos(frames), model.embed_videos(frames[:, [0, 3]])
        turned = model.embed_videos(frames[:, [3, 0]])
    assert torch.equal(whole, ends)
    assert not torch.allclose(whole, turned), "it must see the order"


def test_towers_of_different_widths_need_a_projection(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CLIP, "widths", property(lambda self: (24, 16)))
    model: Any = CLIP(path=str(tiny_clip))
    for embed in (lambda: model.embed_text(["a"]), lambda: model.embed_videos(clips(1, 1))):
        with pytest.raises(UserError, match="width 24, visual ones of width 16"):
            embed()
