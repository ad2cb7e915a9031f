"""Laws of alignment: codes of captions find the clips they describe, motion included; the seed decides them."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain import config
from mmtrain.adapter.bridge import Bridge, whitening
from mmtrain.backbone.svd import text_tower
from mmtrain.data.cache import encode_shards
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source
from mmtrain.data.stream import Row
from mmtrain.errors import UserError
from mmtrain.rng import Rng
from mmtrain.train.align import Align, news, shifted


def pooled(frames: Tensor) -> dict[str, Tensor]:
    """Small pictures in the place of a codec's latents."""
    small = F.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])
    seen = F.avg_pool2d(small[:, 0], 8).flatten(1)  # [b 12]: what a first frame shows, roughly
    return {"latents": small, "latents_std": torch.zeros_like(small), "image_embeds": seen}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("align")
    write_world(folder / "world", split="train", count=400, seed=0, two_objects=0.0)
    source = Source(shards=str(folder / "world"), num_frames=4, stride=5)
    encode_shards(source, folder / "cache", encode=pooled, encoder_id="pooled", batch_size=32)
    return Source(shards=str(folder / "cache"))


@pytest.fixture(scope="module")
def shipped_clip() -> Path:
    """It knows the world's words, of which the tiny untrained ones know but a few."""
    return Path(config.shipped("clip"))


def fresh(clip: Path) -> Any:
    torch.manual_seed(0)
    backbone = SimpleNamespace(
        text=text_tower(str(clip), 0),
        conditioning_width=128,
        modulated={"down.time_emb_proj": 8},
        draw_latents=lambda encoded, rng: encoded["latents"],
    )
    Bridge(tokens=1, width=32, heads=2, code=16).attach(backbone)
    return backbone


def likeness(source: Any, clip: Path) -> float:
    """Cosine between codes of captions that differ in their direction alone, the mean over pairs."""
    backbone = fresh(clip)
    reached = Align(steps=200, batch_size=64, samples=400, lr=3e-3)(backbone, source, 0)
    assert reached["recall@1"] > 0.08  # 0.016 by chance
    assert not any(w.requires_grad for w in backbone.bridge.say.parameters())
    said = [f"a red circle moving {way} on black" for way in ("left", "right", "up", "down")]
    codes = F.normalize(backbone.bridge.code(backbone.text(said)), dim=-1)
    return float((codes @ codes.T).triu(1).sum() / 6)


def test_codes_tell_motions_apart_if_clips_show_them(clips: Source, shipped_clip: Path) -> None:
    class Frozen:
        kind = "encoded"
        __len__ = clips.__len__

        def row(self, *where: Any) -> Row:
            row = clips.row(*where)
            return replace(row, encoded={name: part[:1].expand_as(part) for name, part in row.encoded.items()})

    assert likeness(clips, shipped_clip) < likeness(Frozen(), shipped_clip) - 0.1


def test_the_seed_decides_the_codes(clips: Source, shipped_clip: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        backbone = fresh(shipped_clip)
        torch.manual_seed(seed + len(made))  # a global generator is not read
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Align(steps=3, batch_size=8, samples=50, lr=1e-3)(backbone, clips, seed)
        made.append(backbone.bridge.say[0].weight.detach().clone())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_aligned_codes_change_no_output_of_a_fresh_bridge(clips: Source, shipped_clip: Path) -> None:
    backbone = fresh(shipped_clip)
    Align(steps=2, batch_size=8, samples=20, lr=1e-3)(backbone, clips, 0)
    assert not torch.equal(backbone.bridge.news, torch.eye(16)), "what first frames show is taken out"
    steered = backbone.bridge.steer(backbone.bridge.code(backbone.text(["a red circle"])))
    assert {name: float(what.detach().abs().max()) for name, what in steered.items()} == {"down.time_emb_proj": 0.0}


def test_whitened_words_are_uncorrelated() -> None:
    words = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) @ torch.randn(12, 12)
    white = words @ whitening(words)
    assert torch.allclose(white.T @ white / 500, torch.eye(12), atol=1e-3)


def test_what_a_first_frame_shows_is_no_news() -> None:
    draw = torch.Generator().manual_seed(0)
    shown, new, wording = (torch.randn(800, n, generator=draw) * size for n, size in ((3, 1.0), (2, 1.0), (3, 0.02)))
    said = torch.cat([shown, new, wording], 1) + 5.0
    seen = torch.cat([shown, torch.randn(800, 4, generator=draw)], 1) @ torch.randn(7, 7, generator=draw)
    left = (said - said.mean(0)) @ news(said, seen).T
    share = left.var(0) / left.var(0).sum()
    assert share[3:5].sum() > 0.97
    assert share[5:].sum() < 1e-4, "wording is no news"
    assert left.square().sum(1).mean().item() == pytest.approx(1, rel=1e-3), "as unit vectors"
    assert torch.isfinite(news(torch.ones(4, 8), torch.ones(4, 2))).all(), "captions that are all alike"


def test_a_shifted_clip_is_the_clip_elsewhere() -> None:
    clips = torch.randn(64, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    moved = shifted(clips, Rng(0, 0, range(64)))
    assert moved.shape == clips.shape
    inner = {(y, x): clips[..., 3 + y : 13 + y, 3 + x : 13 + x] for y in range(-3, 4) for x in range(-3, 4)}
    places = []
    for i in range(64):
        places += [place for place, part in inner.items() if torch.equal(moved[i, ..., 3:13, 3:13], part[i])]
    assert len(places) == 64, "one place each, the same for all frames"
    assert len(set(places)) > 20
    assert torch.equal(moved, shifted(clips, Rng(0, 0, range(64)))), "the seed decides"


@pytest.mark.parametrize("what", ["bridge", "cache", "frames"])
def test_what_cannot_be_aligned_is_named(what: str, clips: Source, shipped_clip: Path) -> None:
    backbone, source = fresh(shipped_clip), clips
    if what == "bridge":
        backbone.bridge = None
    if what == "cache":
        source = SimpleNamespace(kind="frames")  # type: ignore[assignment]
    if what == "frames":
        row = SimpleNamespace(encoded={"latents": torch.zeros(1, 4, 8, 8)}, caption="")
        source = type("One", (), {"kind": "encoded", "row": lambda *_: row, "__len__": lambda _: 4})()
    with pytest.raises(UserError, match={"bridge": "bridge", "cache": "cache", "frames": "single frames"}[what]):
        Align(steps=1, batch_size=2, samples=2, lr=1e-3)(backbone, source, 0)
