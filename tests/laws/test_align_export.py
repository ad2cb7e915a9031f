"""Law: what an alignment trained opens in vanilla transformers and peft, in a clean process, with equal embeddings."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import CLIPModel

from mmtrain import artifact, cli, config
from mmtrain.backbone.clip import prepare
from mmtrain.backbone.pair import opened
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.batch import to_unit
from mmtrain.data.shards import ShardWriter, encode_webp, write_world
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import OWN, Case
from mmtrain.evaluate.clip_score import ClipScore
from mmtrain.evaluate.run import metric
from mmtrain.export.diffusers import export
from mmtrain.export.prove import prove, prove_artifact, prove_peft
from mmtrain.run import Run
from mmtrain.train.fit import fit
from mmtrain.train.resume import Ask
from tests.proofs import here

Exported = tuple[Path, Path]
WORDS = ["trainer.steps=2", "trainer.batch_size=4", "trainer.num_workers=0", "logger={}", "optim.lr=0.05"]
WORDS += ["optim.warmup=0"]
LORA = ["~adapters.full", "backbone=clip", "backbone.long_captions=truncate", "dataset.num_frames=1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("pairs") / "world", split="train", count=6, seed=0)


def trained(folder: Path, shards: Path, *words: str) -> Path:
    asked = [*WORDS, f"folder={folder / 'runs'}", f"dataset.shards={shards}", *words]
    return fit(config.checked(config.compose("align_world", asked)), Ask())


@pytest.fixture(scope="module")
def went_out(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, shards: Path) -> Callable[[str], Exported]:
    """The run and the export of an adapter inside the tiny CLIP, made when first asked for."""

    @cache
    def made(kind: str) -> Exported:
        where = tmp_path_factory.mktemp(kind)
        run = trained(where, shards, *LORA, f"backbone.path={tiny_clip}", f"+adapter@adapters.words={kind}")
        with nullcontext() if kind == "lora_clip" else here():
            return run, export(str(run), where / "out")

    return made


@pytest.mark.parametrize("kind", ["lora_clip", "dora_clip"])
def test_lora_goes_out_merged_and_as_a_peft_adapter(kind: str, tiny_clip: Path, went_out: Callable[[str], Exported]):
    run, folder = went_out(kind)
    ours, _, _ = artifact.load(folder)
    merged = CLIPModel.from_pretrained(folder).eval()
    adapted = PeftModel.from_pretrained(CLIPModel.from_pretrained(tiny_clip), folder / "peft").eval()
    ids, _ = ours.tokens(["a red circle", "a blue square"])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = {"input_ids": ids, "pixel_values": prepare(images, 224, ours.processor)}
    with torch.no_grad():
        bare, one, two = (m(**given).logits_per_image for m in (CLIPModel.from_pretrained(tiny_clip), merged, adapted))
        text, seen = ours.embed_text(["a red circle", "a blue square"]), ours.embed_images(images)
        text, seen = (torch.nn.functional.normalize(side) for side in (text, seen))
        wanted = ours.log_scale.exp() * seen @ text.T
    torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two, wanted, rtol=1e-4, atol=1e-4)
    assert (bare - wanted).abs().max() > 1e-2, "the adapter does nothing"
    assert "PeftModel" in (folder / "README.md").read_text()
    file = folder / "peft" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 1}))
    with here(), pytest.raises(UserError, match="PEFT adapter gives something"):
        prove_peft(artifact.of_run(Run.open(run))[0], folder)


def test_an_export_is_the_conditioner_of_a_video_model(
    tmp_path: Path, tiny_svd: Path, tiny_clip: Path, went_out: Callable[[str], Exported]
):
    """A text bridge trains on an aligned text tower, and its artifact samples with that very tower."""
    _, clip = went_out("lora_clip")
    clips = tmp_path / "clips"
    with ShardWriter(clips, max_samples=4) as writer:  # of captions that the tiny tower can take
        for i, frames in enumerate(np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64, 3), dtype=np.uint8)):
            facts = {"webp": encode_webp(frames, 25.0), "txt": b"a red circle", "json": b'{"fps": 25, "num_frames": 3}'}
            writer.write(f"clip-{i}", facts)
    words = [f"folder={tmp_path / 'runs'}", f"dataset.shards={clips}", f"cache={tmp_path / 'cache'}", "logger={}"]
    words += [
        "dataset.num_frames=3",
        "dataset.stride=1",
        "trainer.steps=2",
        "trainer.batch_size=2",
        "trainer.threads=1",
        "optim.warmup=0",
    ]
    words += [f"backbone.path={tiny_svd}", f"backbone.text_path={clip}", "align.steps=2", "align.batch_size=2"]
    words += ["adapters.bridge.width=16", "adapters.bridge.heads=2", "adapters.motion.rank=2"]
    run = Run.open(fit(config.checked(config.compose("svd_text_bridge", words)), Ask()))
    backbone, _ = artifact.of_run(run)
    (folder := tmp_path / "bridge").mkdir()
    facts = artifact.write(run, backbone, folder)
    assert facts["text_digest"] == artifact.text_digest(StableVideoDiffusion(path=str(tiny_svd), text_path=str(clip)))
    bare = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    assert facts["text_digest"] != artifact.text_digest(bare)
    asked = ["--prompt", "a red circle moving left", "--steps", "2", "--seed", "1", "--out", str(tmp_path / "made")]
    assert cli.main(["sample", str(folder), *asked]) == 0
    assert len(list((tmp_path / "made").rglob("*.mp4"))) == 1
    towers = [clip / "model.safetensors", tmp_path / "model.safetensors"]
    towers[0].rename(towers[1])
    shutil.copy(tiny_clip / "model.safetensors", towers[0])  # another text tower in its place
    manifest, kept = clip / "manifest.json", (clip / "manifest.json").read_text()
    manifest.unlink()
    with pytest.raises(UserError, match="text tower .* holds other weights"):
        artifact.base(folder)
    towers[1].replace(towers[0])
    manifest.write_text(kept)


def test_an_export_is_the_model_of_the_clip_score(tmp_path: Path, tiny_clip: Path, went_out: Callable[[str], Exported]):
    """A metric of one's own is a file like those of conf/metric, with the export's path in it."""
    _, clip = went_out("lora_clip")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_target_: mmtrain.evaluate.clip_score.ClipScore\npath: {clip}\n")
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    asked = [Case(name=p, group=OWN, prompt=p, seed=0) for p in ("a red circle", "a blue square")]
    found = []
    for made in (metric(str(mine)), ClipScore(path=str(tiny_clip))):
        made.prepare(asked)
        found.append(made(frames, asked[0]))
    ours, _, _ = artifact.load(clip)
    with torch.no_grad():
        seen, said = ours.embed_images(to_unit(frames)), ours.embed_text(["a red circle"])
    wanted = float(torch.nn.functional.cosine_similarity(seen, said).mean())
    assert found[0]["CLIP score (out)"] == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted - found[1]["CLIP score (clip)"]) > 1e-3, "it is not the base's"
    mine.write_text(mine.read_text().replace("path:", "pth:"))
    with pytest.raises(UserError, match="pth.*path"):
        metric(str(mine))


def test_what_stands_on_top_goes_out_as_an_artifact(tmp_path: Path, tiny_clip: Path, shards: Path):
    tops = ["+adapter@adapters.head=clip_adapter", "+adapter@adapters.deep=bottleneck_clip"]
    run = trained(tmp_path, shards, *LORA, f"backbone.path={tiny_clip}", *tops)
    folder = export(str(run), tmp_path / "out")
    assert {"adapter.safetensors", "artifact.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert not (folder / "model.safetensors").exists()
    backbone, adapters = artifact.of_run(Run.open(run))
    adapters["head"].tops["visual"].up.weight.data += 0.1
    with pytest.raises(UserError, match="loaded again, gives something else"):
        prove_artifact(backbone, folder)


PAIRS = {
    "timesformer": ["/backbone@backbone.text: language_fresh", "/backbone@backbone.visual: timesformer_fresh"],
    "conv3d": ["/backbone@backbone.text: clip_text_fresh", "/backbone@backbone.visual: conv3d_fresh"],
}


@pytest.mark.parametrize("kind", sorted(PAIRS))
def test_a_pair_goes_out_tower_by_tower(kind: str, tmp_path: Path, shards: Path):
    recipe = tmp_path / "pair.yaml"
    parts = "".join(f"  - {line}\n" for line in PAIRS[kind])
    recipe.write_text(
        "# @package _global_\ndefaults:\n  - /adapter@adapters.full: full\n" + parts + "  - _self_\n"
        "  - override /dataset: world\n  - override /backbone: pair\n  - override /objective: contrastive\n"
        "  - override /optim: adamw\n  - override /trainer: cpu\nname: pair\ndataset: {num_frames: 4, stride: 5}\n"
        "trainer: {threads: 1}\n"
    )
    asked = [*WORDS, f"folder={tmp_path / 'runs'}", f"dataset.shards={shards}"]
    run = fit(config.checked(config.compose(str(recipe), asked)), Ask())
    with here():
        folder = export(str(run), tmp_path / "out")
    ours, _ = artifact.of_run(Run.open(run))
    again = opened(path=str(folder))
    frames = torch.rand(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.embed_videos(frames), ours.eval().embed_videos(frames))
        assert torch.equal(again.embed_text(["a red circle"]), ours.embed_text(["a red circle"]))


@pytest.mark.parametrize("name", ["siglip_fresh", "clip_stack_fresh"])
def test_a_whole_model_opens_in_transformers_with_equal_embeddings(name: str, tmp_path: Path):
    torch.manual_seed(0)
    composed = config.compose("align_world", [f"+backbone@adapters.option={name}"]).adapters.option
    backbone = config.build(composed)
    folder = tmp_path / "out"
    folder.mkdir()
    backbone.save(folder, torch.float32)
    with nullcontext() if name == "siglip_fresh" else here():
        assert prove(backbone, folder, torch.float32).most < 0.1
    backbone.log_scale.data += 1
    with here(), pytest.raises(UserError, match="weights of model are not those that were trained"):
        prove(backbone, folder, torch.float32)
