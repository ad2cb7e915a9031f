"""Tiny untrained models, built once per session: folders that vanilla transformers and diffusers open."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import logging
from omegaconf import OmegaConf

from mmtrain.config import build
from mmtrain.config.recipe import CONF

SCHEDULERS = {name: OmegaConf.load(CONF / "backbone" / f"{name}_fresh.yaml") for name in ("sd", "svd")}


def _saved(factory: pytest.TempPathFactory, name: str, model: Any) -> Path:
    folder = factory.mktemp("models") / name
    folder.mkdir()
    logging.disable_progress_bar()
    model.save(folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmtrain.backbone import clip

    torch.manual_seed(1)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = ["a", "red", "blue", "circle", "square", "moving", "left", "right", "up", "down", "still", "on", "black"]
    vision = {**tower, "image_size": 224, "patch_size": 56}
    return _saved(tmp_path_factory, "clip", clip.fresh(words=words, max_tokens=16, text=tower, vision=vision, width=24))


@pytest.fixture(scope="session")
def narrow_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose tokens are as wide as its shared space, as a prior wants it."""
    from mmtrain.backbone import clip

    torch.manual_seed(1)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    words = ["a", "red", "circle"]
    model = clip.fresh(words=words, max_tokens=16, text=tower, vision=vision, width=16)
    return _saved(tmp_path_factory, "narrow_clip", model)


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmtrain.backbone import codec

    torch.manual_seed(2)
    model = codec.fresh(channels=[32, 32, 32, 32], latent_channels=4, layers=1, groups=32, side=64)
    return _saved(tmp_path_factory, "codec", model)


@pytest.fixture(scope="session")
def tiny_video_codec(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> Path:
    from mmtrain.backbone import codec

    return _saved(tmp_path_factory, "video_codec", codec.temporal_from(path=str(tiny_codec)))


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path, tiny_clip: Path) -> Path:
    from mmtrain.backbone import sd

    torch.manual_seed(3)
    unet = {
        "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "attention_head_dim": 2,
    }
    scheduler = OmegaConf.to_container(SCHEDULERS["sd"].scheduler)
    model = sd.fresh(unet=unet, scheduler=scheduler, codec=str(tiny_codec), clip=str(tiny_clip))  # type: ignore[arg-type]
    return _saved(tmp_path_factory, "sd", model)


@pytest.fixture(scope="session")
def tiny_svd(tmp_path_factory: pytest.TempPathFactory, tiny_video_codec: Path, tiny_clip: Path) -> Path:
    from mmtrain.backbone import svd

    torch.manual_seed(4)
    unet = {
        "sample_size": 8,
        "down_block_types": ["DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"],
        "up_block_types": ["CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"],
        "block_out_channels": [32, 32],
        "addition_time_embed_dim": 8,
        "layers_per_block": 1,
        "num_attention_heads": [2, 2],
    }
    scheduler = OmegaConf.to_container(SCHEDULERS["svd"].scheduler)
    codec, clip = str(tiny_video_codec), str(tiny_clip)
    model = svd.fresh(unet=unet, scheduler=scheduler, codec=codec, clip=clip, num_frames=3)  # type: ignore[arg-type]
    return _saved(tmp_path_factory, "svd", model)


SMALL: dict[str, dict[str, Any]] = {
    "sdxl": {
        "unet": {
            "sample_size": 8,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "block_out_channels": [32, 32],
            "transformer_layers_per_block": [1, 1],
            "attention_head_dim": [2, 2],
        }
    },
    "animatediff": {"num_frames": 3, "motion": {"motion_num_attention_heads": 2, "motion_max_seq_length": 8}},
    "wan": {
        "size": [16, 16],
        "transformer": {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2},
        "codec": {"base_dim": 8, "latents_mean": [0.1, 0.0, -0.1, 0.2], "latents_std": [0.5, 1.0, 1.5, 2.0]},
        "text": {"d_model": 16, "num_heads": 2, "num_layers": 1},
    },
    "wan_i2v": {"image_tower": {"hidden_size": 16, "intermediate_size": 16, "patch_size": 16, "num_hidden_layers": 3}},
    "wan_i2v_plain": {"image_tower": None},
    "wan_i2v_by_token": {"image_tower": None, "by_token": True},
    "prior": {"prior": {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}},
    "vq": {"channels": [16, 16], "groups": 4, "codes": 16},
}
"""What tests change of `conf/backbone/<family>_fresh.yaml`."""
SMALL |= {name: {**SMALL["wan"], **SMALL[name]} for name in SMALL if name.startswith("wan_i2v")}
VARIANTS = {"wan_i2v_plain": "wan_i2v", "wan_i2v_by_token": "wan_i2v"}
"""Families that have no file of their own."""


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The folder of a tiny untrained model of a family, on the tiny codec and CLIP, made when first asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            node = OmegaConf.load(CONF / "backbone" / f"{VARIANTS.get(name, name)}_fresh.yaml")
            clip = "narrow_clip" if name == "prior" else "tiny_clip"
            fixtures = {"codec": "tiny_codec", "clip": clip, "path": "tiny_sd"}
            given = {k: str(request.getfixturevalue(f)) for k, f in fixtures.items() if isinstance(node.get(k), str)}
            torch.manual_seed(5)
            model = build(OmegaConf.merge(OmegaConf.create({**node, **given}), SMALL[name]))
            made[name] = _saved(tmp_path_factory, name, model)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def styled(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Path:
    """An artifact on a Stable Diffusion whose LoRA was trained for two steps at a rate that shows; its run beside it,
    in ``runs``."""
    import numpy as np
    from PIL import Image

    from mmtrain import cli
    from tests.proofs import here

    root = tmp_path_factory.mktemp("styled")
    (root / "own").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / "own" / f"red-circle-{i:02d}.png")
    words = [f"dataset.folder={root / 'own'}", f"dataset.shards={root / 'shards'}", "cache=null"]
    words += [f"backbone.path={tiny_sd}", f"folder={root / 'runs'}", "dataset.caption='a red circle'"]
    words += ["trainer.steps=2", "trainer.patience=null", "trainer.threads=1", "trainer.batch_size=2", "logger=null"]
    words += ["optim.lr=0.1", "optim.warmup=1", "trainer.ema=null", "trainer.heldout_batches=1", "preview=null"]
    words += ["adapters.style.rank=2", "gates=['pixels forgotten <= 1']"]
    assert cli.main(["train", "brand_style", *words]) == 0
    [run] = (root / "runs").glob("*brand_style*")
    with here():
        assert cli.main(["export", str(run), "--to", str(root / "artifact"), "--format", "diffusers"]) == 0
    return root / "artifact"


@pytest.fixture(name="here")
def proved_here() -> Iterator[None]:
    """Exports are proved in this process (`tests/proofs.py`)."""
    from tests.proofs import here

    with here():
        yield
