"""A model of clips that starts from an image and is given none: its first frames are drawn, alike in previews, in
`mmtrain sample` and in `mmtrain evaluate`."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtrain import artifact, cli
from mmtrain.adapter.bridge import Bridge
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.wan import Wan
from mmtrain.data.decode import Look, decode
from mmtrain.data.shards import write_world
from mmtrain.run import Run
from mmtrain.sample.generate import clips, images
from mmtrain.sample.mp4 import write_mp4
from mmtrain.sample.video import VideoSampler
from mmtrain.train.preview import Preview

PROMPT, SIDE = "a red circle moving left", 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, family: Callable[[str], Path], tiny_sd: Path) -> Path:
    """A run of two steps at a rate that shows, with previews."""
    root = tmp_path_factory.mktemp("first_frames")
    shards = write_world(root / "shards", split="train", count=2, seed=0)
    words = ["backbone=wan_i2v", f"backbone.path={family('wan_i2v_plain')}", f"backbone.size=[{SIDE},{SIDE}]"]
    words += [
        f"dataset.shards={shards}",
        f"dataset.size={SIDE}",
        "cache=null",
        "logger=null",
        f"folder={root / 'runs'}",
    ]
    words += ["preview=clips", f"preview.sd={tiny_sd}", f"preview.prompts=['{PROMPT}']", "preview.every=2"]
    words += ["preview.num_inference_steps=1", "preview.seed=3", "trainer.steps=2", "trainer.batch_size=2"]
    words += ["trainer.threads=1", "optim.lr=0.1", "optim.warmup=1"]
    assert cli.main(["train", "wan_lora", *words]) == 0
    [made] = (root / "runs").glob("*wan_lora*")
    return made


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    made, folder = Run.open(run), run.parent / "made"
    folder.mkdir()
    artifact.write(made, artifact.of_run(made)[0], folder)
    return folder


def frames(file: Path) -> np.ndarray:
    return decode("clip", {"mp4": file.read_bytes()}, Look()).frames


def test_a_preview_is_what_sampling_makes_of_the_export(run: Path, exported: Path, tiny_sd: Path, tmp_path: Path):
    shown = frames(run / "previews" / "step-000002-0.mp4")
    assert shown.shape == (5, SIDE, SIDE, 3)
    words = ["sample", exported, "--prompt", PROMPT, "--seed", 3, "--steps", 1]
    words += ["--no-watermark", "--out", tmp_path / "made", "--first-frame", tiny_sd]
    assert cli.main([str(w) for w in words]) == 0
    assert np.array_equal(frames(next((tmp_path / "made").glob("*.mp4"))), shown)


def test_an_evaluation_starts_both_from_the_frames_that_were_drawn_or_given(
    exported: Path, tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.new("RGB", (SIDE, SIDE), (10, 200, 10)).save(tmp_path / "green.png")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": PROMPT, "image": "green.png"}) + "\n")
    words = ["evaluate", exported, "--prompts-from", tmp_path / "prompts.jsonl", "--metrics", "motion", "--steps", 1]
    words += ["--first-frame", tiny_sd, "--first-frame-guidance", 3]
    assert cli.main([str(w) for w in [*words, "--ways", "none", "--out", tmp_path / "none"]]) == 2
    assert "none for a model that starts from an image" in capsys.readouterr().err
    assert cli.main([str(w) for w in [*words, "--ways", "sd,image", "--out", tmp_path / "out"]]) == 0
    entries = json.loads((tmp_path / "out" / "evaluation.json").read_text())["clips"]
    assert [entry["way"] for entry in entries] == ["sd", "image"]
    seed = entries[0]["seed"]
    how: dict[str, Any] = {"prompts": [PROMPT], "seeds": [seed], "num_inference_steps": 1}
    drawn = images(backbone=StableDiffusion(path=str(tiny_sd)), height=SIDE, width=SIDE, guidance_scale=3, **how)
    given = np.full_like(drawn, (10, 200, 10))
    models: dict[str, Wan] = {"base": artifact.base(exported), "adapted": artifact.load(exported)[0]}
    made = []
    for entry, first in zip(entries, (drawn, given), strict=True):
        for arm, model in models.items():
            wanted = write_mp4(clips(backbone=model, images=first, **how)[0], tmp_path / "wanted.mp4")
            made.append(frames(tmp_path / "out" / entry[arm]["clip"]))
            assert np.array_equal(made[-1], frames(wanted)), (entry["way"], arm)
    assert len({clip.tobytes() for clip in made}) == 4, "frames and adapters each change a clip"


@pytest.mark.parametrize("bridged", [False, True])
def test_a_preview_reads_what_the_adapters_were_trained_on(
    tiny_svd: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bridged: bool
):
    backbone = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    if bridged:
        Bridge(tokens=1, width=16, heads=2, code=8).attach(backbone)
    read: list[str] = []

    def video(self: VideoSampler, **asked: Any) -> np.ndarray:
        read.append(asked["tokens"])
        return np.zeros((1, 2, SIDE, SIDE, 3), np.uint8)

    monkeypatch.setattr(VideoSampler, "video", video)
    no_loggers: Any = []
    preview = Preview(prompts=[PROMPT], every=1, loggers=no_loggers)
    module: Any = SimpleNamespace(backbone=backbone)
    preview._sample(module)
    preview.first = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    preview._sample(module)
    assert read == ["text", "text" if bridged else "image"]
    facts = {"adapters": {"a": {"_target_": f"mmtrain.adapter.{'bridge.Bridge' if bridged else 'lora.LoRA'}"}}}
    assert artifact.brings_text(facts) == bridged
