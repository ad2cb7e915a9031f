"""Contracts of alignment backbones: each option of the menu embeds, trains, goes out to its library and comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.backbone.aligned import Aligned
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.pair import Pair, opened
from mmtrain.backbone.siglip import SigLIP
from mmtrain.batch import Batch
from mmtrain.config.recipe import CONF
from mmtrain.errors import UserError
from mmtrain.objective.contrastive import Contrastive
from mmtrain.objective.siglip import SigLIP as SigmoidLoss
from mmtrain.rng import Rng

CAPTIONS = ["a red circle moving left on black", "a blue square moving up", "a still red circle on black"]
WHOLE = ("clip_fresh", "clip_stack_fresh", "siglip_fresh")
TEXT = ("clip_text", "clip_text_fresh", "language_fresh")
VISUAL = ("clip_vision", "timesformer_fresh", "conv3d_fresh")


def part(name: str, clip: Path) -> dict[str, Any]:
    composed = config.compose("align_world", [f"+backbone@adapters.option={name}"]).adapters.option
    node: Any = OmegaConf.to_container(composed, resolve=True)
    return {**node, "path": str(clip)} if name in ("clip_text", "clip_vision") else node


def built(name: str, clip: Path) -> Aligned:
    torch.manual_seed(0)
    if name in WHOLE:
        return config.build(part(name, clip))
    text, visual = name.split("+")
    parts = {"text": part(text, clip), "visual": part(visual, clip)}
    return config.build({"_target_": "mmtrain.backbone.pair.Pair", **parts})


NAMES = [*WHOLE, *(f"{text}+timesformer_fresh" for text in TEXT[1:]), "clip_text_fresh+conv3d_fresh"]
NAMES += ["clip_text+clip_vision"]


def clips(t: int = 4) -> torch.Tensor:
    return torch.rand(3, t, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_frozen_and_embeds_both_sides_in_one_width(name: str, tiny_clip: Path):
    model = built(name, tiny_clip)
    assert not any(w.requires_grad for w in model.parameters())
    with torch.no_grad():
        visual, text = model.embed_videos(clips()), model.embed_text(CAPTIONS)
        assert visual.shape == text.shape
        apart = torch.pdist(text) / text.norm(dim=1).mean()
        assert apart.min() > 1e-3, "captions must differ"
        encoded = Batch(["x", "y", "z"], [0, 1, 2], CAPTIONS, None, model.encode(clips()))
        assert torch.equal(model.embed_visual(encoded), visual)


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_does_not_depend_on_its_neighbours(name: str, tiny_clip: Path):
    model = built(name, tiny_clip)
    with torch.no_grad():
        together, alone = model.embed_text(CAPTIONS), torch.cat([model.embed_text([c]) for c in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_both_towers_has_a_part_in_the_embeddings(name: str, tiny_clip: Path):
    model = built(name, tiny_clip)
    for weight in model.network.parameters():
        weight.requires_grad_(True)
    loss = (model.embed_videos(clips()) * model.embed_text(CAPTIONS)).sum()
    loss.backward()
    dead = [n for n, w in model.network.named_parameters() if w.grad is None and "logit" not in n]
    assert dead == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_comes_back_equal(name: str, tiny_clip: Path, tmp_path: Path):
    model = built(name, tiny_clip)
    model.log_scale.data.fill_(3.0)
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder, torch.float32)
    again = {CLIP: CLIP, SigLIP: SigLIP, Pair: opened}[type(model)](path=str(folder))
    assert again.base["digest"] == model.base["digest"] or float(again.log_scale) == pytest.approx(3.0, abs=1e-6)
    with torch.no_grad():
        assert torch.equal(again.embed_videos(clips()), model.embed_videos(clips()))
        assert torch.equal(again.embed_text(CAPTIONS), model.embed_text(CAPTIONS))
    assert float(again.log_scale) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("name", ["clip_text_fresh+timesformer_fresh", "clip_text_fresh+conv3d_fresh"])
def test_a_video_tower_refuses_images_and_sees_the_order_of_frames(name: str, tiny_clip: Path):
    model = built(name, tiny_clip)
    with pytest.raises(UserError, match=r"an image.*clips of 4 frames.*num_frames=4"):
        model.embed_images(clips()[:, 0])
    with pytest.raises(UserError, match="clips of 3 frames"):
        model.embed_videos(clips(3))
    with torch.no_grad():
        forth, back = model.embed_videos(clips()), model.embed_videos(clips().flip(1))
    assert (forth - back).abs().max() > 1e-3 * forth.abs().max()


def test_towers_of_different_widths_are_refused_with_the_way_out(tiny_clip: Path):
    model = built("clip_text+timesformer_fresh", tiny_clip)
    with pytest.raises(UserError, match=r"width 24, visual ones of width 128.*projection"):
        model.embed_text(CAPTIONS)


def test_a_pair_names_no_code_of_its_own(tiny_clip: Path, tmp_path: Path):
    built("clip_text_fresh+conv3d_fresh", tiny_clip).save(folder := tmp_path / "pair", torch.float32)
    facts = folder / "pair.json"
    facts.write_text(facts.read_text().replace("mmtrain.backbone.conv3d.Conv3D", "mmtrain.cli.main"))
    with pytest.raises(UserError, match="towers of mmtrain"):
        opened(path=str(folder))


@pytest.mark.parametrize("group", ["adapter", "backbone"])
def test_each_option_names_its_target_itself(group: str):
    """An artifact may name the targets of the menu, and its reader composes nothing."""
    options = {path.stem: OmegaConf.load(path) for path in (CONF / group).glob("*.yaml")}
    assert [name for name, option in options.items() if "_target_" not in option] == []


@pytest.mark.parametrize(("name", "objective"), [("siglip_fresh", SigmoidLoss), ("clip_stack_fresh", Contrastive)])
def test_an_objective_takes_it_and_logs_single_numbers(name: str, objective: Any, tiny_clip: Path):
    """SigLIP keeps its temperature and bias in tensors of one element, CLIP its temperature in one of none."""
    batch = Batch(["x", "y", "z"], [0, 1, 2], CAPTIONS, clips())
    loss = objective()(built(name, tiny_clip), batch, Rng(0, 0, [0, 1, 2]))
    assert loss.per_sample.shape == (3,)
    assert [log for log, value in loss.logs.items() if value.ndim] == []
