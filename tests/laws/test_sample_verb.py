"""`mmtrain sample` as a person meets it: files that carry their origin, all or none; one clear line for a mistake."""

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain import artifact, cli
from mmtrain.adapter.bridge import Bridge
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.data.decode import Look, decode
from mmtrain.sample import write
from mmtrain.sample.generate import images
from mmtrain.sample.mp4 import write_mp4
from mmtrain.sample.video import VideoSampler

PROMPTS = ["a red circle moving left", "a blue square still"]
TINY = ["--steps", "1", "--num-frames", "2"]
SAMPLED: dict[str, Any] = {"num_inference_steps": 1, "num_frames": 2}


@pytest.fixture(scope="module")
def adapted(tiny_svd: Path, tiny_clip: Path) -> StableVideoDiffusion:
    backbone = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    torch.manual_seed(0)
    Bridge(tokens=1, width=16, heads=2, code=8).attach(backbone)
    torch.nn.init.normal_(backbone.bridge.out.weight)  # type: ignore[union-attr, arg-type]
    return backbone


@pytest.fixture
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_svd: Path, tiny_sd: Path, tiny_clip: Path, adapted: Any
) -> Path:
    """An empty folder to work in, with short names of the tiny models; `adapter` is an artifact, read already."""
    for name, path in (("svd", tiny_svd), ("sd", tiny_sd), ("clip", tiny_clip)):
        (tmp_path / name).symlink_to(path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "artifact.json").write_text("{}")
    facts = {"name": "toy", "run_id": "0123456789abcdef"}
    monkeypatch.setattr(artifact, "load", lambda folder: (adapted, {}, facts))
    monkeypatch.setattr(write.config, "shipped", lambda name: str(tmp_path / name))
    Image.new("RGB", (100, 50), "red").save(tmp_path / "photo.jpg")
    (tmp_path / "prompts.txt").write_text("\n".join(["", *PROMPTS, "  "]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, *more: str) -> int:
    return cli.main(["sample", *line.split(), *more])


def frames(file: Path) -> np.ndarray:
    return decode("clip", {"mp4": file.read_bytes()}, Look()).frames


def test_text_to_video_through_an_artifact(home: Path, adapted: Any, capsys: pytest.CaptureFixture[str]):
    words = ["--first-frame", "none", "--seed", "5", "--fps", "8", "--guidance-scale", "4", "--no-watermark"]
    assert run("adapter --out made --prompts-file prompts.txt", *words, *TINY) == 0
    said = capsys.readouterr()
    assert "AI-generated, and each file says so" in said.err
    files = [Path(line) for line in said.out.splitlines()]
    assert [f.name for f in files] == ["000-a-red-circle-moving-left.mp4", "001-a-blue-square-still.mp4", "sheet.png"]
    assert sorted((home / "made").iterdir()) == sorted(home / f for f in files)
    with av.open(str(files[1])) as container:
        told, stream = dict(container.metadata), container.streams.video[0]
        assert (stream.frames, float(stream.average_rate)) == (2, 8.0)
    assert (told["title"], told["seed"], told["run_id"]) == (PROMPTS[1], "6", "0123456789abcdef")
    assert "AI-generated" in told["comment"]
    assert json.loads(told["settings"]) == {"num_inference_steps": 1, "num_frames": 2, "guidance_scale": 4.0}
    sampler = VideoSampler(backbone=adapted)
    wanted = sampler.video(prompts=PROMPTS[1:], seeds=[6], guidance_scale=4.0, **SAMPLED)[0]
    assert np.array_equal(frames(files[1]), frames(write_mp4(wanted, home / "wanted.mp4", fps=8)))


def test_a_clip_is_the_same_alone_and_in_company(home: Path):
    assert run("adapter --out a --first-frame none --prompts-file prompts.txt", *TINY) == 0
    assert run("adapter --out b --first-frame none --seed 1", "--prompt", PROMPTS[1], *TINY) == 0
    company, alone = home / "a" / "001-a-blue-square-still.mp4", home / "b" / "000-a-blue-square-still.mp4"
    assert np.array_equal(frames(company), frames(alone))


def test_the_three_ways_and_the_vanilla_one(home: Path, adapted: Any, monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, Any]] = []

    def video(self: VideoSampler, **asked: Any) -> np.ndarray:
        calls.append({**asked, "drawing": self.first_frame})
        return np.zeros((1, 2, 64, 64, 3), np.float32)

    monkeypatch.setattr(VideoSampler, "frames", video)
    lines = {
        "text": "adapter --prompt x --first-frame none",
        "drawn": "adapter --prompt x --first-frame sd --first-frame-guidance 2",
        "drawn elsewhere": "adapter --prompt x --first-frame sd --out d2",
        "not at home": "adapter --prompt x",
        "image": "svd --image photo.jpg",
        "image alone": "adapter --image photo.jpg",
        "image and text": "adapter --image photo.jpg --prompt x",
        "drawn for a plain one": "svd --prompt x --first-frame sd",
        "a plain one that reads": "svd --prompt x --text clip",
    }
    got = {}
    for name, line in lines.items():
        assert run(f"{line} --out {name.replace(' ', '-')}" if "--out" not in line else line, *TINY) == 0
        got[name] = calls.pop()
    ways = {
        name: (call["prompts"], call["tokens"], call["first_frames"], "images" in call, call["drawing"] is not None)
        for name, call in got.items()
    }
    assert ways == {
        "text": (["x"], "text", "none", False, False),
        "drawn": (["x"], "text", "generate", False, True),
        "drawn elsewhere": (["x"], "text", "generate", False, True),
        "not at home": (["x"], "text", "none", False, False),
        "image": (None, "image", "none", True, False),
        "image alone": (None, "text", "none", True, False),
        "image and text": (["x"], "text", "none", True, False),
        "drawn for a plain one": (["x"], "image", "generate", False, True),
        "a plain one that reads": (["x"], "text", "none", False, False),
    }
    assert got["drawn"]["first_frame_guidance"] == 2
    assert got["image"]["images"].shape == (1, 64, 64, 3)


def test_adapters_that_bring_no_text_read_the_first_frames_token(
    home: Path, tiny_svd: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
):
    bare = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    monkeypatch.setattr(artifact, "load", lambda folder: (bare, {}, {"name": "toy", "run_id": "0123456789abcdef"}))
    tokens: list[str] = []

    def video(self: VideoSampler, **asked: Any) -> np.ndarray:
        tokens.append(asked["tokens"])
        return np.zeros((1, 2, 64, 64, 3), np.float32)

    monkeypatch.setattr(VideoSampler, "frames", video)
    for place, first in enumerate(("--first-frame sd", "--image photo.jpg", "--first-frame none")):
        assert run(f"adapter --prompt x {first} --out made-{place}", *TINY) == 0
    assert tokens == ["image", "image", "text"]


def test_first_frames_are_drawn_for_what_stands_on_the_shipped_backbones(
    home: Path, adapted: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(artifact, "portable", lambda value: {"path": "${shipped:svd}"})
    assert write._drawing(adapted, None, 32) is not None
    assert write._drawing(adapted, "none", 16) is None


def test_a_photograph_is_cut_and_not_squeezed(home: Path, monkeypatch: pytest.MonkeyPatch):
    wide = np.zeros((50, 100, 3), np.uint8)
    wide[:, 25:75] = 255
    Image.fromarray(wide).save(home / "wide.png")
    seen: list[np.ndarray] = []

    def video(self: VideoSampler, **asked: Any) -> np.ndarray:
        seen.append(asked["images"][0])
        return np.zeros((1, 2, 64, 64, 3), np.float32)

    monkeypatch.setattr(VideoSampler, "frames", video)
    assert run("svd --image wide.png --out made") == 0
    assert seen[0].shape == (64, 64, 3)
    assert seen[0].min() > 200  # the black sides are cut off
    assert run("svd --image wide.png --out wide --height 32 --width 64") == 0
    assert seen[1].shape == (32, 64, 3)
    assert seen[1].min() == 0


def test_pictures(home: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]):
    assert run("sd --out made --prompts-file prompts.txt --seed 2 --steps 1 --negative-prompt blue --no-watermark") == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["000-a-red-circle-moving-left.png", "001-a-blue-square-still.png", "sheet.png"]
    how: dict[str, Any] = {"num_inference_steps": 1, "negative_prompt": "blue"}
    wanted = images(backbone=StableDiffusion(path=str(tiny_sd)), prompts=PROMPTS[1:], seeds=[3], **how)[0]
    with Image.open(home / "made" / names[1]) as picture:
        assert np.array_equal(np.asarray(picture), wanted)
        assert picture.text["title"] == PROMPTS[1]


def test_without_out_the_folder_is_named_by_time_and_artifact(home: Path, capsys: pytest.CaptureFixture[str]):
    assert run("adapter --first-frame none", "--prompt", PROMPTS[0], *TINY) == 0
    [folder] = (home / "samples").iterdir()
    assert folder.name.endswith("-toy")
    assert (folder / "sheet.png").is_file()


LONG = "red " * 40
MISTAKES = {
    "adapter": "neither prompt nor image",
    "adapter --prompt x --out taken": "the output exists",
    "nowhere --prompt x": "no such folder",
    "empty --prompt x": "neither artifact.json nor model_index.json",
    "clip --prompt x": "neither artifact.json nor model_index.json",
    "adapter --prompts-file nowhere.txt": "no such file",
    "adapter --prompts-file photo.jpg": "not a text file",
    "adapter --prompts-file empty.txt": "an empty file",
    "adapter --image nowhere.png": "no such file",
    "adapter --image prompts.txt": "does not decode",
    "adapter --image photo.jpg --first-frame sd": "one of the two",
    "adapter --prompt x --first-frame none --first-frame-guidance 2": "no first frame to draw",
    "sd --prompt x --first-frame-guidance 2": "a model of pictures",
    "adapter --prompt x --text clip": "names its own text tower",
    "adapter --prompt x --first-frame nowhere": "nowhere",
    "svd --prompt x": "no text tower to read it",
    "svd --prompt x --image photo.jpg": "no text tower to read it",
    "sd --image photo.jpg": "a model of pictures",
    "sd --prompt x --num-frames 3": "a model of pictures",
    "sd": "neither prompt nor image",
    "adapter --prompt x --height 60": "height: 60 pixels; a multiple of 16",
    "sd --prompt x --width 60": "width: 60 pixels; a multiple of 8",
    "adapter --prompt x --num-frames 0": "--num-frames",
    "adapter --prompt x --guidance-scale nan": "--guidance-scale",
    "adapter --prompt x --seed -1": "--seed",
    "sd --prompt x --overlap 2": "a model of pictures",
    "adapter --prompt x --overlap 2": "a clip of one chunk",
    "adapter --prompt x --frames 9 --overlap 3": "fewer than the 3 frames of a clip",
    "svd --image photo.jpg --strength 0.5": "no artifact, so no strength",
    "adapter --prompt x --mix adapter=1": "adapter again",
    "adapter --prompt x --mix nowhere=1": "nowhere: no artifact",
    "adapter --prompt x --mix 0.5": "an equals sign and a number",
    "adapter --prompt x --certificate a.pem": "belong together",
    "adapter --prompt x --certificate a.pem --private-key b.pem": "a.pem: No such file",
    "adapter --prompt x --no-watermark --watermark-key k": "exclude each other",
    "adapter --prompts-file long.txt": "at most 16 fit the text tower",
    "svd --prompts-file long.txt --first-frame sd": "at most 16 fit the text tower",
    "sd --prompts-file long.txt": "at most 16 fit the text tower",
    f"adapter --prompt x --out {'n' * 300}": "File name too long",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    home: Path, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (home / "taken").mkdir()
    (home / "taken" / "precious").write_text("")
    (home / "empty").mkdir()
    (home / "empty.txt").write_text(" \n")
    (home / "long.txt").write_text(f"{PROMPTS[0]}\n{LONG}\n")
    monkeypatch.setattr("mmtrain.sample.video._Pipeline.__call__", lambda *a, **k: pytest.fail("sampled"))
    before = sorted(os.walk(home))
    assert run(line) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mmtrain: ")
    assert said.err.count("\n") == 1
    assert MISTAKES[line] in said.err
    assert sorted(os.walk(home)) == before
