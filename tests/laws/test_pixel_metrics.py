"""Laws of the metrics of pixels: movement is not flicker, frames are aligned before they are compared."""

import numpy as np
import pytest

from mmtrain.data.world import render, scene
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import OWN, Case
from mmtrain.evaluate.encoded import Encoded, check_aligned, ffmpeg_with_vmaf, psnr, ssim
from mmtrain.evaluate.motion import Motion

CASE = Case(name="c", group=OWN, prompt="p", seed=0)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return render(scene(0, "train", 3), 8)


def test_what_moves_is_no_flicker_and_what_flickers_is():
    texture = np.random.default_rng(0).integers(0, 255, (64, 64 + 8, 3)).astype(np.uint8)
    pan = np.stack([texture[:, t : t + 64] for t in range(8)])
    moved, still = Motion()(pan, CASE), Motion()(pan[:1].repeat(8, 0), CASE)
    noise = np.random.default_rng(1).integers(-20, 20, pan.shape)
    flicker = Motion()(np.clip(pan[:1] + noise, 0, 255).astype(np.uint8), CASE)
    assert still == {"motion amount": 0, "warping error": 0, "broken frames": 0}
    assert moved["motion amount"] > 30  # type: ignore[operator]
    assert moved["warping error"] < 0.1 * moved["motion amount"]  # type: ignore[operator]
    assert flicker["warping error"] > moved["warping error"]  # type: ignore[operator]
    with pytest.raises(UserError, match="one frame"):
        Motion()(pan[:1], CASE)


def test_black_and_empty_frames_are_broken(clip: np.ndarray):
    broken = clip.copy()
    broken[1], broken[2] = 0, 200
    assert Motion()(broken, CASE)["broken frames"] == 2 / 8
    assert Motion()(clip, CASE)["broken frames"] == 0


def test_another_count_or_a_shift_is_refused(clip: np.ndarray):
    moving = np.stack([np.roll(clip[0], 3 * t, 1) for t in range(8)])
    check_aligned(moving, moving)
    for other, word in ((moving[:-1], "the same number"), (np.roll(moving, 1, 0), "later"), (moving[:, :32], "size")):
        with pytest.raises(UserError, match=word):
            check_aligned(moving, other)


def test_equal_is_best_and_noise_costs(clip: np.ndarray):
    noisy = np.clip(clip + np.random.default_rng(0).integers(-9, 10, clip.shape), 0, 255).astype(np.uint8)
    assert (psnr(clip, clip), ssim(clip, clip)) == (100, pytest.approx(1))
    assert 25 < psnr(clip, noisy) < 40
    assert ssim(clip, noisy) < 0.9


def test_the_default_file_keeps_what_it_shows(clip: np.ndarray):
    found = Encoded(vmaf=False)(clip, CASE)
    assert found["PSNR"] > 30  # type: ignore[operator]
    assert found["SSIM"] > 0.95  # type: ignore[operator]


def test_vmaf_of_the_default_file(clip: np.ndarray):
    try:
        ffmpeg_with_vmaf()
    except UserError as missing:
        pytest.skip(str(missing))
    assert Encoded()(clip, CASE)["VMAF"] > 95  # type: ignore[operator]


def test_vmaf_of_a_flat_scene_with_hard_edges():
    """Read by another matrix than the file's, what yuv420p takes from chroma passed for luma: 93.4, not 97."""
    try:
        ffmpeg_with_vmaf()
    except UserError:
        pytest.skip("no ffmpeg with libvmaf")
    flat = render(scene(3, "heldout", 5, 0.0), 4, 256)
    assert Encoded()(flat, CASE)["VMAF"] > 95  # type: ignore[operator]


def test_without_libvmaf_it_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmtrain.evaluate.encoded._candidates", list)
    ffmpeg_with_vmaf.cache_clear()
    with pytest.raises(UserError, match=r"mmtrain\[vmaf\]"):
        Encoded()
    ffmpeg_with_vmaf.cache_clear()
