"""Laws of the brand's journey: what is held out of a folder, when a run ends early, pictures in the evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtrain import artifact, cli, config
from mmtrain.data.files import write_files
from mmtrain.data.folder import folder
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import NEUTRAL, ONE, Case, around, heldout
from mmtrain.evaluate.directional import Directional
from mmtrain.evaluate.forgetting import Forgetting
from mmtrain.run import Run, checkpoints


def photographs(root: Path, count: int, broken: int = 0) -> Path:
    root.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"red-circle-{i:02d}.png")
    for i in range(broken):
        (root / f"broken-{i}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return root


# what is held out -----------------------------------------------------------------------------------------------------


def test_a_folder_falls_into_two_parts_by_seed(tmp_path: Path):
    root = photographs(tmp_path / "own", 12)
    how: dict[str, Any] = {"folder": str(root), "shards": str(tmp_path / "shards"), "caption": "{name}, in our style"}
    both = [folder(**how, part=part, heldout_fraction=0.25) for part in ("train", "heldout")]
    assert [len(source) for source in both] == [9, 3]
    assert sorted([*both[0].keys, *both[1].keys]) == sorted(folder(**how).keys)
    again = folder(**how, part="heldout", heldout_fraction=0.25)
    assert again.keys == both[1].keys
    assert folder(**how, part="heldout", heldout_fraction=0.25, split_seed=1).keys != both[1].keys
    assert both[1].sample(0).captions[0].endswith(", in our style")


def test_broken_files_are_named_and_left_out_of_both_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = photographs(tmp_path / "own", 37, broken=3)
    how: dict[str, Any] = {"folder": str(root), "shards": str(tmp_path / "shards"), "caption": "{name}"}
    parts = [folder(**how, max_bad_fraction=0.2, part=part) for part in ("train", "heldout")]
    assert [len(source) for source in parts] == [33, 4]
    said = capsys.readouterr().err
    assert all(f"left out broken-{i}.png: the .png does not decode" in said for i in range(3))
    with pytest.raises(UserError, match="3 of 40 files do not decode"):
        folder(**{**how, "shards": str(tmp_path / "strict")}, max_bad_fraction=0.05)


def test_one_sample_cannot_be_parted(tmp_path: Path):
    root = photographs(tmp_path / "own", 1)
    with pytest.raises(UserError, match="at least two, one to hold out"):
        folder(folder=str(root), shards=str(tmp_path / "shards"), caption="{name}", part="heldout")


# the run --------------------------------------------------------------------------------------------------------------

SHORT = ["trainer.threads=1", "trainer.batch_size=2", "logger=null", "preview=null", "adapters.style.rank=2"]


def test_a_run_ends_early_and_its_best_is_exported(tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]):
    """A rate far too high: the loss held out only rises, so the first checkpoint is the best."""
    root = photographs(tmp_path / "own", 6)
    words = [f"dataset.folder={root}", f"dataset.shards={tmp_path / 'shards'}", f"cache={tmp_path / 'cache'}"]
    words += [f"backbone.path={tiny_sd}", f"folder={tmp_path / 'runs'}", "dataset.caption='a red circle'"]
    words += ["trainer.checkpoint_every=1", "trainer.patience=2", "trainer.steps=40", "optim.lr=3", "optim.warmup=1"]
    words += ["trainer.heldout_batches=1", "trainer.ema=null"]
    assert cli.main(["train", "brand_style", *SHORT, *words]) == 0
    assert "no heldout below" in capsys.readouterr().err
    [path] = (tmp_path / "runs").glob("*brand_style*")
    run = Run.open(path)
    ended = run.manifest["step"]
    best = checkpoints.best(path / "checkpoints")
    assert best is not None
    assert ended < 40
    assert int(best.name[5:]) == ended - 2
    assert artifact.outcome(run) == best
    losses = [float(line.split(",")[1]) for line in (path / "heldout.csv").read_text().split()[1:]]
    assert min(losses) == losses[-3]


def test_patience_without_a_best_is_refused():
    with pytest.raises(UserError, match=r"trainer.patience"):
        config.build(config.checked(config.compose("sd_lora", ["trainer.patience=2"])).trainer)


# what is asked --------------------------------------------------------------------------------------------------------


def test_words_go_around_prompts_and_neutral_ones_come_after():
    cases = heldout(count=2, two_objects=0, seed=0)
    told = around(cases, "{prompt}, in zwx style", neutral=True)
    assert [c.group for c in told] == [ONE, ONE, NEUTRAL, NEUTRAL]
    assert [c.prompt for c in told[:2]] == [f"{c.prompt}, in zwx style" for c in cases]
    assert [c.plain for c in told] == [cases[0].prompt, cases[1].prompt, None, None]
    assert [c.seed for c in told[2:]] == [c.seed for c in cases]
    assert around(cases, None, neutral=False) == cases
    with pytest.raises(UserError, match="words around {prompt}"):
        around(cases, "in zwx style", neutral=False)
    with pytest.raises(UserError, match="--neutral"):
        around(cases, None, neutral=True)


def test_forgetting_and_direction_of_the_same_and_of_other_clips(tiny_clip: Path):
    plain = Case(name="c", group=ONE, prompt="a red circle", seed=0)
    style, neutral = around([plain], "{prompt} on black", neutral=True)
    base = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    forgetting, direction = Forgetting(path=str(tiny_clip)), Directional(path=str(tiny_clip))
    assert set(forgetting.against(base, base, neutral).values()) == {0.0}
    moved = forgetting.against(255 - base, base, neutral)
    assert all(value > 0 for value in moved.values())
    assert set(forgetting.against(255 - base, base, style).values()) == {None}
    assert direction.against(base, base, style) == {"CLIP direction (clip)": 0.0}
    there, back = (
        direction.against(a, b, style)["CLIP direction (clip)"] for a, b in ((255 - base, base), (base, 255 - base))
    )
    assert there == pytest.approx(-back, abs=1e-5)
    assert -1 <= there <= 1
    assert direction.against(base, base, neutral) == {"CLIP direction (clip)": None}


# pictures -------------------------------------------------------------------------------------------------------------


def asked(tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    words = [
        "--prompts-from",
        str(tmp_path / "prompts.txt"),
        "--steps",
        "1",
        "--words",
        "{prompt} on black",
        "--neutral",
    ]
    return [*words, "--metrics", "fulfilment,forgetting,directional", "--out", str(tmp_path / "out")]


def test_pictures_are_evaluated_and_strength_zero_forgets_nothing(styled: Path, tmp_path: Path):
    assert cli.main(["evaluate", str(styled), *asked(tmp_path), "--strength", "0"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["ways"] == ["none"]
    assert all(entry["base"]["shape"][0] == 1 and entry["base"]["clip"].endswith(".png") for entry in found["clips"])
    rows = {(row["group"], row["number"]): row for row in found["table"]}
    for name in ("forgetting (clip)", "pixels forgotten"):
        row = rows[NEUTRAL, name]
        assert row["adapted"]["mean"] == row["adapted"]["high"] == 0.0
    assert (
        cli.main(
            ["report", str(next((styled.parent / "runs").glob("*"))), "--evaluation", str(tmp_path / "out")]
            + ["--out", str(tmp_path / "page.html")]
        )
        == 0
    )
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Pictures</h2>" in page
    assert page.count('src="data:image/png') >= 8


def test_strength_one_forgets_something(styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The control of the law above; and the recipe's own gate decides, here and at an export."""
    assert cli.main(["evaluate", str(styled), *asked(tmp_path)]) == 1
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = {(row["group"], row["number"]): row for row in found["table"]}
    assert rows[NEUTRAL, "pixels forgotten"]["adapted"]["low"] > 0
    assert rows["prompts", "CLIP direction (clip)"]["adapted"]["mean"] != 0
    assert [gate["passed"] for gate in found["gates"]] == [False]
    run = str(next((styled.parent / "runs").glob("*")))
    gated = ["export", run, "--format", "peft", "--to", str(tmp_path / "gated"), "--gate"]
    assert cli.main([*gated, str(tmp_path / "out")]) == 1
    assert not (tmp_path / "gated").exists()
    assert "it failed its gates" in capsys.readouterr().err


def test_what_passed_its_gates_is_exported(
    styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], here: None
):
    run = next((styled.parent / "runs").glob("*"))
    words = asked(tmp_path)
    assert cli.main(["evaluate", str(styled), *words, "--gate", "pixels forgotten <= 255"]) == 0
    gated = ["export", str(run), "--format", "peft", "--to", str(tmp_path / "gated"), "--gate"]
    other = tmp_path / "other"
    other.mkdir()
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    found["artifact"]["step"] = 1
    (other / "evaluation.json").write_text(json.dumps(found))
    assert cli.main([*gated, str(other)]) == 2, "of other weights"
    assert "evaluate this one" in capsys.readouterr().err
    assert cli.main([*gated, str(tmp_path / "out")]) == 0
    assert (tmp_path / "gated" / "adapter_model.safetensors").is_file()


def test_a_way_that_pictures_have_not_is_refused(styled: Path, tmp_path: Path):
    assert cli.main(["evaluate", str(styled), *asked(tmp_path), "--ways", "sd"]) == 2
    assert not (tmp_path / "out").exists()


# the world as files ---------------------------------------------------------------------------------------------------


def test_the_worlds_kit_as_files(tmp_path: Path):
    assert cli.main(["shards", "world", str(tmp_path / "kit"), "--brand", "--files", "3,2", "--two-objects", "0"]) == 0
    names = sorted(path.name for path in (tmp_path / "kit").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["png", "txt"] * 3 + ["mp4", "txt"] * 2
    assert "in zwx style" in (tmp_path / "kit" / names[1]).read_text()
    assert write_files(tmp_path / "other", images=1, clips=0, split="train", seed=0).is_dir()
    with pytest.raises(UserError, match="clutter"):
        write_files(tmp_path / "none", images=1, clips=0, split="clutter", seed=0)
