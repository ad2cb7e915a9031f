"""Laws of long video: the wanted length, handed over in floats, no seam, no error that adds up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.evaluate.arms import Sampled, Settings
from mmtrain.evaluate.cases import OWN, Case
from mmtrain.evaluate.seams import Seams
from mmtrain.sample import chunks
from mmtrain.sample.carried import carried
from mmtrain.sample.chunks import drift, long_video, seams
from mmtrain.sample.generate import to_bytes

LENGTH, SIDE = 8, 32
CASE = Case(name="c", group=OWN, prompt="a red circle", seed=3)


def settings(num_frames: int | None) -> Settings:
    return Settings(first_frame="", num_inference_steps=1, num_frames=num_frames)


def bytes_of(clip: np.ndarray) -> np.ndarray:
    return np.round(clip * 255).astype(np.uint8)


class Painter:
    """A sampler without a network: a bar that moves on from where its first frame has it, in colours that are a little
    wrong each time, as a codec's are."""

    def __init__(self, gain: float = 0.97, offset: float = 0.02) -> None:
        config = SimpleNamespace(num_frames=LENGTH)
        vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
        self.pipeline = SimpleNamespace(unet=SimpleNamespace(config=config), vae=vae, vae_scale_factor=4)
        self.side, self.gain, self.offset = SIDE, gain, offset
        self.calls: list[dict[str, Any]] = []

    def frames(self, **asked: Any) -> np.ndarray:
        self.calls.append(asked)
        first = asked.get("images")
        if first is None:
            first = np.full((len(asked["seeds"]), SIDE, SIDE, 3), 0.3, np.float32)
            first[:, :, 4:10] = [0.8, 0.5, 0.2]  # which comes round again, but never just where chunks meet
        clip = np.stack([np.roll(first, t, 2) for t in range(LENGTH)], 1)
        return (clip * self.gain + self.offset).astype(np.float32)


@pytest.mark.parametrize(
    ("num_frames", "overlap", "count"), [(9, 1, 2), (15, 1, 2), (16, 1, 3), (64, 1, 9), (20, 3, 4)]
)
def test_the_length_that_was_asked_for(num_frames: int, overlap: int, count: int):
    painter = Painter()
    made = long_video(painter, num_frames=num_frames, overlap=overlap, seeds=[3])  # type: ignore[arg-type]
    assert made.shape == (1, num_frames, SIDE, SIDE, 3)
    assert len(painter.calls) == count
    assert made[:, :LENGTH].tolist() == painter.frames(seeds=[3]).tolist() or overlap > 1


@pytest.mark.parametrize("overlap", [1, 3])
def test_the_next_chunk_begins_from_floats_and_shares_noise(overlap: int):
    painter = Painter()
    made = long_video(painter, num_frames=2 * LENGTH - overlap, overlap=overlap, seeds=[3])  # type: ignore[arg-type]
    first, second = painter.calls
    assert "images" not in first
    assert second["images"].dtype == np.float32
    whole = painter.frames(seeds=[3])
    assert np.array_equal(second["images"], whole[:, -overlap])
    assert torch.equal(second["latents"][:, :overlap], first["latents"][:, -overlap:])
    assert not torch.equal(second["latents"][:, overlap:], first["latents"][:, overlap:])
    assert np.array_equal(made[:, : LENGTH - overlap], whole[:, : LENGTH - overlap])


def test_colours_do_not_drift_and_no_seam_shows(monkeypatch: pytest.MonkeyPatch):
    made = long_video(Painter(), num_frames=64, seeds=[0])[0]  # type: ignore[arg-type]
    kept = drift(np.round(made * 255).astype(np.uint8))
    assert max(kept.values()) < 1.5
    assert seams(made, LENGTH, 1) < 1.5
    monkeypatch.setattr(chunks, "matched", lambda frames, *_: frames.copy())
    plain = long_video(Painter(), num_frames=64, seeds=[0])[0]  # type: ignore[arg-type]
    assert drift(np.round(plain * 255).astype(np.uint8))["colour"] > 10
    assert seams(plain, LENGTH, 1) > seams(made, LENGTH, 1)


def test_what_the_copy_lacks_goes_along_with_what_moves():
    """A bright square moves right by two pixels a frame; the next clip shows it dull. What it lacks would stay behind
    as a ghost if it were faded out where it was."""
    whole = np.full((1, 2 * LENGTH - 1, SIDE, SIDE, 3), 0.2, np.float32)
    for t in range(whole.shape[1]):
        whole[0, t, 10:20, 1 + 2 * t : 11 + 2 * t] = 0.9
    dull = np.minimum(whole, 0.5)
    before, after = whole[:, :LENGTH], dull[:, LENGTH - 1 :]
    led_on = chunks._led_on(before[:, -1], after)[0]
    assert led_on.shape == (LENGTH - 1, SIDE, SIDE, 3)
    for t, frame in enumerate(led_on):
        left = 1 - (t + 1) / (LENGTH - 1)
        faded = dull[0, LENGTH + t] + left * (whole - dull)[0, LENGTH + t]
        assert np.abs(frame - faded).max() < 0.01, t


def test_a_redrawn_frame_comes_little_by_little():
    """From its second frame on a clip that stands still shows another shade: no step is larger than its share."""
    before = np.full((1, LENGTH, SIDE, SIDE, 3), 0.5, np.float32)
    before[..., 8:20, 8:20, :] = 0.8
    after = before.copy()
    after[:, 1:, 8:20, 8:20] = 0.6
    led_on = chunks._led_on(before[:, -1], after)[0]
    steps = -np.diff(np.concatenate([before[0, -1:], led_on])[:, 14, 14, 0])
    assert np.allclose(steps, 0.2 / (LENGTH - 1), atol=1e-6)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_carried_is_what_moved_and_nothing_else(side: int):
    """A picture in a picture goes three down and two left, in pixels of 64; a layer over it goes along, the rest of the
    layer stays."""
    scale = max(1, side // 64)
    rng = np.random.default_rng(0)
    before, after, layer, wanted = (torch.zeros(2, 3, side, side) for _ in range(4))
    thing = torch.from_numpy(rng.random((2, 3, 12, 12))).float().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    here, there = (slice(8 * scale, 20 * scale),) * 2, (slice(11 * scale, 23 * scale), slice(6 * scale, 18 * scale))
    for frame, place in ((before, here), (after, there)):
        frame[..., place[0], place[1]] = thing
    for flat, (rows, columns) in ((layer, here), (wanted, there)):
        flat[..., rows, columns] = 1 - thing
        flat[..., -4 * scale :, -4 * scale :] = 0.5
    made = carried(layer, before, after)
    inside = (..., slice(13 * scale, 21 * scale), slice(8 * scale, 16 * scale))
    assert torch.equal(made[inside], wanted[inside])
    assert torch.equal(made[..., -4 * scale :, -4 * scale :], wanted[..., -4 * scale :, -4 * scale :])
    assert torch.equal(carried(layer, before, before), layer)
    assert torch.equal(carried(layer[:1], before[:1], after[:1]), made[:1])


def test_a_cut_is_a_seam_and_a_still_clip_has_none():
    clip = Painter(gain=1, offset=0).frames(seeds=[0])[0]
    cut = np.concatenate([clip, 1 - clip[1:]])
    assert seams(cut, LENGTH, 1) > 5
    assert seams(np.concatenate([clip, np.roll(clip, LENGTH - 1, 2)[1:]]), LENGTH, 1) == pytest.approx(1, abs=0.05)
    assert seams(clip[:1].repeat(20, 0), LENGTH, 1) == 0


def test_an_evaluation_makes_long_clips_as_the_sampler_does(tiny_svd: Path, tiny_clip: Path):
    model = Sampled(StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip)), settings(5))
    images, none = np.full((1, 64, 64, 3), 90, np.uint8), lambda done, total: None
    assert model.length == 3
    made = model([CASE], images, none)
    how: dict[str, Any] = {"prompts": [CASE.prompt], "images": images, "negative_prompt": "", "num_inference_steps": 1}
    wanted = long_video(model.sampler, num_frames=5, seeds=[CASE.seed], **how)
    assert made.shape == (1, 5, 64, 64, 3)
    assert np.array_equal(made, to_bytes(wanted))
    model.settings = settings(None)
    assert len(model([CASE], images, none)[0]) == 3
    model.reads, how["seeds"] = False, [CASE.seed]  # adapters that bring no text read the first frame's token
    assert np.array_equal(model([CASE], images, none), model.sampler.video(**how, tokens="image"))
    assert np.array_equal(model([CASE], None, none), model.sampler.video(**{**how, "images": None}))


def test_the_metric_of_seams_looks_where_chunks_meet():
    clip = Painter(gain=1, offset=0).frames(seeds=[0])[0]
    on = np.concatenate([clip, np.roll(clip, LENGTH - 1, 2)[1:]])
    cut = np.concatenate([clip, 1 - clip[1:]])
    metric = Seams()
    assert set(metric(bytes_of(cut), CASE).values()) == {None}  # nobody said of what length chunks are
    metric.chunked(LENGTH)
    assert set(metric(bytes_of(clip), CASE).values()) == {None}
    assert metric(bytes_of(on), CASE)["seamless"] is True
    found = metric(bytes_of(cut), CASE)
    assert found["seamless"] is False
    assert found["seam jump"] == seams(bytes_of(cut), LENGTH, 1) > 5
    assert found["colour drift"] == drift(bytes_of(cut))["colour"]
    metric.chunked(LENGTH - 2)
    assert metric(bytes_of(cut), CASE)["seamless"] is True  # the cut lies within a chunk


@pytest.mark.parametrize("overlap", [0, LENGTH])
def test_an_overlap_that_leaves_nothing_new_is_refused(overlap: int):
    with pytest.raises(UserError, match="fewer than the 8 frames"):
        long_video(Painter(), num_frames=64, overlap=overlap, seeds=[0])  # type: ignore[arg-type]
