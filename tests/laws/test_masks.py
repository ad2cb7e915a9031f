"""Laws of masks: from a file beside a picture through packing and the cache to the weights of a loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain.backbone.prior import Prior
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.batch import Batch
from mmtrain.data.cache import encode_shards, identity
from mmtrain.data.decode import BadSample, Look
from mmtrain.data.mask import mask_of, png
from mmtrain.data.pack import pack
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng
from tests.laws.denoising import latents_and_error

POSITIONS = [4, 5]
CAPTIONS = ["a red circle", "a blue square"]
HALF = np.zeros((64, 64), np.uint8)
HALF[:, :32] = 255


def photographs(root: Path, mask: np.ndarray | None = HALF) -> Path:
    """Three pictures, 96 by 64; the second has a mask."""
    root.mkdir()
    for name in "abc":
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (64, 96, 3), np.uint8)).save(
            root / f"{name}.png"
        )
        (root / f"{name}.txt").write_text("a red circle\n")
    if mask is not None:
        Image.fromarray(mask).save(root / "b.mask.png")
    return root


def source(shards: Path, **how: Any) -> Source:
    return Source(shards=str(shards), **{"num_frames": 1, "size": 64, **how})


def rows(stream: Source) -> dict[str, Batch]:
    return {b.keys[0]: b for b in stream.loader(seed=0, batch_size=1, steps=len(stream))}


# files ----------------------------------------------------------------------------------------------------------------


def test_a_mask_travels_with_its_picture_and_is_cut_as_it_is(tmp_path: Path):
    wide = np.zeros((32, 48), np.uint8)  # a smaller mask of the same proportions
    wide[:, 24:] = 255
    assert pack(photographs(tmp_path / "own", wide), tmp_path / "shards").samples == 3
    found = rows(source(tmp_path / "shards"))
    assert {key: batch.masks is not None for key, batch in found.items()} == {"a": False, "b": True, "c": False}
    right = torch.zeros(1, 64, 64)
    right[:, :, 32:] = 1
    assert torch.equal(found["b"].masks, right)
    [all_] = source(tmp_path / "shards").loader(seed=0, batch_size=3, steps=1)
    counts = {key: float(mask.mean()) for key, mask in zip(all_.keys, all_.masks, strict=True)}
    assert counts == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert all_.part(slice(0, 2)).masks.shape == all_.to("cpu").part(slice(1, 3)).masks.shape == (2, 64, 64)


def test_a_cache_keeps_masks_and_one_without_them_is_another(tmp_path: Path, tiny_sd: Path):
    model = StableDiffusion(path=str(tiny_sd))
    wide = np.zeros((64, 96), np.uint8)
    wide[:, 48:] = 255
    pack(photographs(tmp_path / "own", wide), tmp_path / "shards")
    pixels = source(tmp_path / "shards")
    how = {"encode": model.encode, "encoder_id": model.encoder_id, "batch_size": 2}
    cached = rows(Source(shards=str(encode_shards(pixels, tmp_path / "cache", **how))))
    assert {key: batch.masks is not None for key, batch in cached.items()} == {"a": False, "b": True, "c": False}
    assert torch.equal(cached["b"].masks, rows(pixels)["b"].masks)
    pack(photographs(tmp_path / "bare", None), tmp_path / "bare-shards")
    assert "masks" in identity(pixels, "e", torch.float16)
    assert "masks" not in identity(source(tmp_path / "bare-shards"), "e", torch.float16)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path):
    root = photographs(tmp_path / "own")  # square, for a picture of 96 by 64
    with pytest.raises(UserError, match=r"b.png: the .mask.png is 64 x 64, the frames 96 x 64"):
        pack(root, tmp_path / "shards")
    Image.fromarray(HALF).save(root / "nobody.mask.png")
    with pytest.raises(UserError, match=r"nobody.mask.png without its image or clip"):
        pack(root, tmp_path / "shards")
    [picture] = [(tmp_path / "own" / "a.png").read_bytes()]
    left = np.zeros((64, 96), np.uint8)
    left[:, :8] = 255  # falls outside of the square that is kept
    members = {"png": picture, "mask.png": png(left)}
    assert mask_of(members, Look()) is not None
    with pytest.raises(BadSample, match="black wherever"):
        mask_of(members, Look(size=(64, 64)))
    with pytest.raises(BadSample, match="does not decode"):
        mask_of({"png": picture, "mask.png": b"\x89PNG\r\n\x1a\nnothing"}, Look())


def test_transparency_of_a_mask_is_black():
    whole = np.dstack([np.full((64, 96, 3), 255, np.uint8), np.zeros((64, 96), np.uint8)])
    whole[:, 48:, 3] = 255
    picture = {"png": png(np.zeros((64, 96), np.uint8)), "mask.png": png(whole)}
    found = mask_of(picture, Look())
    assert found is not None
    assert (int(found[:, :48].max()), int(found[:, 48:].min())) == (0, 255)


# the loss -------------------------------------------------------------------------------------------------------------


def pair(frames: torch.Tensor, masks: torch.Tensor | None = None) -> Batch:
    return Batch(["x", "y"], POSITIONS, CAPTIONS, frames, masks=masks)


def loss(model: Any, frames: torch.Tensor, masks: torch.Tensor | None, **how: Any) -> torch.Tensor:
    with torch.no_grad():
        given = pair(frames, masks)
        return Denoise(drop_text=0.0, drop_image=0.0, **how)(model, given, Rng(0, 0, POSITIONS)).per_sample


@pytest.mark.parametrize("family", ["sd", "svd"])
def test_a_masked_loss_is_the_mean_over_what_the_mask_leaves(family: str, tiny_sd: Path, tiny_svd: Path):
    model: Any = StableDiffusion(path=str(tiny_sd)) if family == "sd" else StableVideoDiffusion(path=str(tiny_svd))
    frames = torch.rand(2, 1 if family == "sd" else 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.stack([torch.from_numpy(HALF).float() / 255, torch.ones(64, 64)])
    plain, error = loss(model, frames, None), latents_and_error(model, pair(frames))[1]
    assert torch.equal(loss(model, frames, masks), plain)  # unless it is asked for
    only = loss(model, frames, masks, unmasked_weight=0.0)
    torch.testing.assert_close(only[0], error[0][..., : error.shape[-1] // 2].mean(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(only[1], plain[1], rtol=1e-5, atol=1e-7)
    fifth = loss(model, frames, masks, unmasked_weight=0.2)
    weights = torch.cat([torch.ones(error.shape[-1] // 2), torch.full((error.shape[-1] // 2,), 0.2)])
    torch.testing.assert_close(fifth[0], (error[0] * weights).mean() / 0.6, rtol=1e-5, atol=1e-7)
    assert torch.equal(loss(model, frames, None, unmasked_weight=0.2), plain)


def test_a_mask_of_what_moves_multiplies_its_weight(tiny_svd: Path):
    model = StableVideoDiffusion(path=str(tiny_svd))
    frames = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.from_numpy(HALF).float().expand(2, 64, 64) / 255
    z, error = latents_and_error(model, pair(frames))
    weights = 1 + 3 * (z - z[:, :1]).abs().mean(2, keepdim=True)
    weights[..., weights.shape[-1] // 2 :] = 0
    weights = weights.expand_as(z)
    each = (error * weights).sum((1, 2, 3, 4)) / weights.sum((1, 2, 3, 4))
    got = loss(model, frames, masks, motion_weight=3.0, unmasked_weight=0.0)
    torch.testing.assert_close(got, each, rtol=1e-5, atol=1e-7)


def test_a_mask_is_asked_of_latents_with_places_alone(family: Any):
    model = Prior(path=str(family("prior")))
    frames, masks = torch.zeros(2, 1, 3, 32, 32), torch.ones(2, 32, 32)
    with pytest.raises(UserError, match="without places"):
        loss(model, frames, masks, unmasked_weight=0.0)
    with pytest.raises(UserError, match=r"objective.unmasked_weight"):
        Denoise(unmasked_weight=1.5)
