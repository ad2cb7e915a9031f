"""Laws of exports: vanilla classes open them and give what was trained; what cannot be proved is not kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from mmtrain import artifact, config
from mmtrain.adapter.injected import merged
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.codec import KLCodec
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.export import prove
from mmtrain.export.diffusers import export
from mmtrain.run import Run, write_json
from mmtrain.run.checkpoints import manifest_of
from mmtrain.sample.generate import images
from mmtrain.sample.video import VideoSampler

TINY = {"height": 64, "width": 64, "num_inference_steps": 2}
PROMPT = "a red circle moving left"
SMALLER = ["adapters.bridge.width=16", "adapters.bridge.heads=2", "adapters.motion.rank=2"]


def run_of(folder: Path, recipe: str, *overrides: str) -> Run:
    """A run that has learnt something, without the training: fresh adapters, moved by noise."""
    cfg = config.checked(config.compose(recipe, [*overrides, f"folder={folder}"]))
    backbone, adapters = artifact.assemble(cfg)
    run = Run.start(cfg, cfg.folder, data="0123abcd", bases={"backbone": backbone.base})
    checkpoint = run.path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    named = {f"{name}/{key}": w for name, a in adapters.items() for key, w in a.named_weights().items()}
    noise = torch.Generator().manual_seed(1)
    moved = {n: w.detach() + 0.05 * torch.randn(w.shape, generator=noise) for n, w in named.items()}
    save_file({n: w.contiguous() for n, w in moved.items()}, checkpoint / "weights.safetensors")
    (checkpoint / "state.json").write_text(json.dumps({"step": 2, "buffers": {}}))
    write_json(checkpoint / "manifest.json", manifest_of(checkpoint))
    return run


@pytest.fixture(scope="module")
def svd_run(tiny_svd: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    paths = [f"backbone.path={tiny_svd}", f"backbone.text_path={tiny_clip}"]
    return run_of(tmp_path_factory.mktemp("runs"), "svd_text_bridge", *paths, *SMALLER)


@pytest.fixture(scope="module")
def exported(svd_run: Run) -> Path:
    return export(str(svd_run.path), svd_run.path.parent.parent / "exported", "fp32")


def test_vanilla_frames_equal_those_of_the_sampler_bit_for_bit(exported: Path, svd_run: Run):
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(exported)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    frames = pipeline(Image.fromarray(photo), **TINY, num_frames=3, generator=generator, output_type="pil").frames[0]
    wanted = np.stack([np.asarray(frame) for frame in frames])
    loaded, trained = artifact.load(exported)[0], artifact.of_run(svd_run)[0]
    bare = StableVideoDiffusion(path=svd_run.cfg.backbone.path)
    for backbone, same in ((loaded, True), (trained, True), (bare, False)):
        got = VideoSampler(backbone=backbone).video(images=photo[None], **TINY, num_frames=3, seeds=[7])[0]
        assert np.array_equal(got, wanted) == same


def test_an_artifact_gives_the_trained_models_text_to_video(exported: Path, svd_run: Run):
    how: dict[str, Any] = {"prompts": [PROMPT], **TINY, "num_frames": 2, "seeds": [3]}
    loaded, adapters, facts = artifact.load(exported)
    wanted = VideoSampler(backbone=artifact.of_run(svd_run)[0]).video(**how)
    assert np.array_equal(VideoSampler(backbone=loaded).video(**how), wanted)
    assert not np.array_equal(VideoSampler(backbone=artifact.base(exported)).video(**how), wanted)
    assert list(adapters) == ["bridge", "motion"]
    assert (facts["run_id"], facts["step"], facts["data"]) == (svd_run.run_id, 2, "0123abcd")


def test_merging_moves_the_network_by_rounding_only(svd_run: Run):
    """The live adapters, as in training, against the folded ones of an export."""
    backbone = artifact.of_run(svd_run)[0]
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 2, 8, 8, 8, generator=noise), torch.tensor([0.3]), torch.randn(1, 1, 24, generator=noise)
    facts = torch.tensor([[6.0, 127, 0.02]])
    with torch.no_grad():
        live, folded = (net(*inputs, facts).sample for net in (backbone.unet, merged(backbone.unet)))
        bare = StableVideoDiffusion(path=svd_run.cfg.backbone.path).unet(*inputs, facts).sample
    assert (folded - live).abs().max() < 1e-4 * live.abs().max()
    assert (bare - live).abs().max() > 1e-2 * live.abs().max()


def test_the_folder_holds_card_and_facts_and_no_frozen_weight(exported: Path, svd_run: Run):
    own = {"README.md", "adapter.safetensors", "artifact.json", "run"}
    parts = {"unet", "vae", "image_encoder", "feature_extractor", "scheduler", "model_index.json", "manifest.json"}
    assert {p.name for p in exported.iterdir()} == own | parts
    card = (exported / "README.md").read_text()
    for said in (svd_run.run_id, "0123abcd", "mmtrain sample", "StableVideoDiffusionPipeline", "every weight equal"):
        assert said in card
    names = set(load_file(exported / "adapter.safetensors"))
    assert {name.split("/")[0] for name in names} == {"bridge", "motion"}
    assert all("lora_" in name for name in names if name.startswith("motion/"))


def test_an_sd_adapter_in_half_precision(tiny_sd: Path, tmp_path: Path, here: None):
    overrides = [f"backbone.path={tiny_sd}", f"dataset.folder={tmp_path}", "adapters.style.rank=2"]
    run = run_of(tmp_path / "runs", "brand_style", *overrides)
    folder = export(str(run.path), tmp_path / "out", "fp16")
    loaded, _, _ = artifact.load(folder)
    plain = StableDiffusion(path=str(folder))
    how: dict[str, Any] = {"prompts": [PROMPT], **TINY, "seeds": [0]}
    ours, theirs = images(backbone=loaded, **how), images(backbone=plain, **how)
    assert 0 < np.abs(ours.astype(int) - theirs).max() < 16
    assert not np.array_equal(ours, images(backbone=artifact.base(folder), **how))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("temporal", [False, True])
def test_a_codec(tiny_codec: Path, tiny_video_codec: Path, tmp_path: Path, here: None, temporal: bool, dtype: str):
    codec = KLCodec(path=str(tiny_video_codec if temporal else tiny_codec), temporal=temporal)
    weights = prove.LEVELS.keys()
    number = next(d for d in weights if str(d).endswith(dtype.removeprefix("fp")))
    codec.save(tmp_path / "out", number)
    assert prove.prove(codec, tmp_path / "out", number).most < (1e-3 if dtype == "fp32" else 16)


def test_a_clip(tiny_clip: Path, tmp_path: Path, here: None):
    clip = CLIP(path=str(tiny_clip))
    clip.save(tmp_path / "out", torch.float16)
    assert prove.prove(clip, tmp_path / "out", torch.float16).mean < 1


def test_a_whole_backbone_is_its_own_folder(tiny_svd: Path, tmp_path: Path, here: None):
    paths = ["backbone=svd", f"backbone.path={tiny_svd}", "backbone.text_path=null"]
    run = run_of(tmp_path / "runs", "pretrain_svd", *paths)
    folder = export(str(run.path), tmp_path / "out", "fp16")
    assert {"unet", "vae", "model_index.json", "manifest.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert not (folder / "artifact.json").exists()
    backbone, facts = artifact.opened(str(folder))
    assert (type(backbone).__name__, facts["name"]) == ("StableVideoDiffusion", "out")


def test_a_faulty_export_is_refused_and_nothing_is_left(
    svd_run: Run, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
):
    bare = StableVideoDiffusion(path=svd_run.cfg.backbone.path).unet
    forgot = lambda part: bare if isinstance(part, type(bare)) else part  # noqa: E731 - an export without its adapters
    monkeypatch.setattr("mmtrain.backbone.weights.merged", forgot)
    with pytest.raises(UserError, match="weights of unet are not those that were trained"):
        export(str(svd_run.path), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_differs_is_refused(svd_run: Run, tmp_path: Path, here: None):
    """Every weight may be right and the frames wrong."""
    backbone, _ = artifact.of_run(svd_run)
    backbone.save(tmp_path / "out", torch.float32)
    file = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "epsilon"}))
    with pytest.raises(UserError, match="levels of 255 away"):
        prove.prove(backbone, tmp_path / "out", torch.float32)


def test_a_folder_that_does_not_open_is_refused(tiny_codec: Path, tmp_path: Path):
    codec = KLCodec(path=str(tiny_codec))
    codec.save(tmp_path / "out", torch.float32)
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(UserError, match="it does not run there"):
        prove.prove(codec, tmp_path / "out", torch.float32)


def test_an_existing_folder_is_refused(svd_run: Run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="the folder exists"):
        export(str(svd_run.path), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# artifacts, damaged ---------------------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        facts = json.loads((folder / "artifact.json").read_text())
        change(facts)
        (folder / "artifact.json").write_text(json.dumps(facts))

    return damage


def flip(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no facts": (lambda folder: (folder / "artifact.json").unlink(), "no artifact.json"),
    "no json": (lambda folder: (folder / "artifact.json").write_text("{"), "unreadable"),
    "not ours": (lambda folder: (folder / "artifact.json").write_text('{"version": 1}'), "unreadable"),
    "later": (edited(lambda facts: facts.update(version=9)), "version 9"),
    "no weights": (lambda folder: (folder / "adapter.safetensors").unlink(), "the file is missing"),
    "a flipped bit": (flip, "sha256"),
    "another base": (edited(lambda facts: facts["base"].update(digest="0" * 32)), "holds other weights"),
    "another text tower": (edited(lambda facts: facts.update(text_digest="0")), "its text tower"),
    "no such base": (edited(lambda facts: facts["backbone"].update(path="/nowhere")), "/nowhere"),
    "an unknown key": (edited(lambda facts: facts["adapters"]["bridge"].update(widht=3)), "perhaps you meant width"),
    "a target outside": (edited(lambda facts: facts["backbone"].update(_target_="os.system")), "allowlist"),
    "a target off the menu": (
        edited(lambda facts: facts["backbone"].update(_target_="mmtrain.backbone.weights.write_manifest")),
        "allowlist",
    ),
    "a target within": (
        edited(lambda facts: facts["adapters"]["bridge"].update(width={"_target_": "mmtrain.cli.main"})),
        "adapters.bridge.width",
    ),
    "an interpolation": (edited(lambda facts: facts["backbone"].update(path="${oc.env:HOME}")), "oc.env"),
    "another rank": (edited(lambda facts: facts["adapters"]["motion"].update(rank=3)), "of another shape"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_artifact_is_refused(exported: Path, tmp_path: Path, name: str):
    damage, said = DAMAGES[name]
    for file in ("artifact.json", "adapter.safetensors"):
        shutil.copy(exported / file, tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=said):
        artifact.load(tmp_path)


def test_paths_of_what_travels_with_mmtrain_are_portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    node = {"path": config.shipped("clip"), "text_path": "own", "codec": "org/name", "rank": 3, "unet": {"x": "own"}}
    kept = artifact.portable(node)
    assert kept == {
        "path": "${shipped:clip}",
        "text_path": str(tmp_path / "own"),
        "codec": "org/name",
        "rank": 3,
        "unet": {"x": "own"},
    }
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr("mmtrain.config.shipped", lambda name: str(elsewhere / name))
    assert artifact.local(kept)["path"] == str(elsewhere / "clip")


def test_a_base_that_changed_since_the_run_is_noticed(tiny_svd: Path, tmp_path: Path):
    shutil.copytree(tiny_svd, tmp_path / "svd")
    run = run_of(tmp_path / "runs", "svd_text_bridge", f"backbone.path={tmp_path / 'svd'}", *SMALLER)
    unet = StableVideoDiffusion(path=str(tiny_svd))
    LoRA(rank=1, alpha=1, targets=["*"]).attach(unet)
    torch.nn.init.normal_(unet.unet.get_parameter("conv_in.base_layer.weight"))
    shutil.rmtree(tmp_path / "svd")
    unet.save(tmp_path / "svd", torch.float32)
    with pytest.raises(UserError, match="holds other weights"):
        artifact.of_run(run)


@pytest.mark.parametrize("where", ["nowhere", "/nowhere/at/all", "."])
def test_opening_what_is_nothing(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="an artifact, a pipeline folder, or a hub id"):
        artifact.opened(where)


def test_opening_what_samples_nothing(tmp_path: Path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "ShapEPipeline"}')
    with pytest.raises(UserError, match="a ShapEPipeline"):
        artifact.opened(str(tmp_path))


def test_bottlenecks_give_an_artifact_alone_that_makes_the_trained_frames(tiny_sd: Path, tmp_path: Path):
    layer = {"_target_": "mmtrain.adapter.bottleneck.Bottleneck", "width": 4, "targets": "[*.attn1.to_out.0]"}
    words = [f"+adapters.tight.{name}={value}" for name, value in layer.items()]
    overrides = [f"backbone.path={tiny_sd}", f"dataset.folder={tmp_path}", "adapters.style.rank=2", *words]
    run = run_of(tmp_path / "runs", "brand_style", *overrides)
    folder = export(str(run.path), tmp_path / "out", "fp32")
    assert {p.name for p in folder.iterdir()} == {"README.md", "adapter.safetensors", "artifact.json", "run"}
    assert "mmtrain alone" in (folder / "README.md").read_text()
    how: dict[str, Any] = {"prompts": [PROMPT], **TINY, "seeds": [0]}
    ours, trained = (images(backbone=b, **how) for b in (artifact.load(folder)[0], artifact.of_run(run)[0]))
    assert np.array_equal(ours, trained)
    assert not np.array_equal(ours, images(backbone=artifact.base(folder), **how))
