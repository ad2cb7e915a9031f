"""`mmtrain reproduce`: the same bits again, and where they are not the same, from which step on and what differs."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmtrain import cli
from mmtrain.reproduce.compare import compare
from mmtrain.reproduce.reference import Record
from tests import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="module")
def done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.train(shards, tmp_path_factory.mktemp("runs"), "trainer.threads=1")


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "runs" / done.name))


def reproduce(what: Path | str, out: Path, *words: str) -> int:
    return cli.main(["reproduce", str(what), "--out", str(out), *words])


def edited(run: Path, **facts: Any) -> None:
    file = run / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))


def test_the_same_run_again_is_bitwise_equal(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert reproduce(run, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "bitwise equal: losses of 6 steps; weights behind step 1, 2, 4, 5, 6" in told
    assert "nothing differs in code, packages, hardware, data and config" in told
    [again] = (tmp_path / "out").iterdir()
    assert json.loads((again / "reproduction.json").read_text())["verdict"] == "bitwise equal"
    assert (
        json.loads((again / "manifest.json").read_text())["reproduces"]
        == json.loads((run / "manifest.json").read_text())["run_id"]
    )


def test_from_a_manifest_and_its_tables_alone_and_some_steps_only(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As an export carries them, for whoever has neither the checkpoints nor the data in the same place."""
    record, moved = tmp_path / "exported" / "run", tmp_path / "moved"
    record.mkdir(parents=True)
    for name in ("manifest.json", "metrics.csv", "digests.csv"):
        shutil.copy(run / name, record)
    manifest = json.loads((record / "manifest.json").read_text())
    shutil.copytree(manifest["config"]["dataset"]["shards"], moved)
    manifest["config"]["dataset"]["shards"] = "/nowhere/world"
    edited(record, config=manifest["config"])
    assert reproduce(tmp_path / "exported", tmp_path / "out", "--steps", "3") == 2
    assert "say where: dataset.shards=<place>" in capsys.readouterr().err
    assert reproduce(tmp_path / "exported", tmp_path / "out", "--steps", "3", "--data", str(moved)) == 0
    told = capsys.readouterr().out
    assert "bitwise equal: losses of 3 steps; weights behind step 1, 2" in told
    assert "although these differ:" in told
    assert "config dataset.shards: '/nowhere/world' then" in told


def test_other_data_is_refused_before_it_trains(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tiny.write_world(tmp_path / "other", split="train", count=6, seed=5, shard_size=3)
    assert reproduce(run, tmp_path / "out", f"dataset.shards={other}") == 2
    assert "fingerprints: data " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_difference_is_told_with_step_and_cause(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The record is changed instead of the code: what is found is the same."""
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    rows[3]["loss"] = repr(float(rows[3]["loss"]) * (1 + 3e-6))
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    hardware = json.loads((run / "manifest.json").read_text())["hardware"]
    edited(run, hardware={**hardware, "cpu": "an older one"}, code="0123")
    assert reproduce(run, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "equal within tolerance: the difference begins at step 4 of 6" in told
    assert "largest: 3e-06 relative, loss at step 4 (tolerance 0.0001)" in told
    assert "hardware cpu: an older one then" in told
    assert "code: 0123 then" in told
    assert reproduce(run, tmp_path / "out", "--tolerance", "1e-6") == 1
    assert "different: the difference begins at step 4" in capsys.readouterr().out


def test_what_only_watches_plays_no_part(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Held-out losses, and the end that they bring early."""
    words = ["trainer.threads=1", "trainer.best=heldout", "trainer.patience=1", "trainer.heldout_batches=1"]
    held = ["+dataset@heldout=world_frames", f"heldout.shards={shards}"]
    run = tiny.train(shards, tmp_path / "runs", *words, *held)
    assert reproduce(run, tmp_path / "out", "--steps", "3") == 0
    assert "bitwise equal: losses of 3 steps" in capsys.readouterr().out


def test_a_run_that_was_changed_on_the_way_is_repeated_up_to_there(run: Path, shards: Path):
    words = tiny.words(shards, run.parent, "optim.lr=0.5", "trainer.steps=8", "--resume", str(run))
    assert cli.main([*words, "--allow", "optim", "--allow", "trainer"]) == 0
    record = Record.of(run)
    assert (record.steps, max(record.metrics)) == (6, 6)
    assert (record.manifest["config"]["optim"]["lr"], record.manifest["config"]["trainer"]["steps"]) == (0.001, 6)


def rows(*losses: float) -> dict[int, dict[str, str]]:
    return {step: {"loss": repr(loss)} for step, loss in enumerate(losses, start=1)}


def test_verdicts():
    same = compare(rows(1, 2), rows(1, 2), {2: "a"}, {2: "a"}, steps=2, tolerance=0)
    assert (same.verdict, same.began, same.largest) == ("bitwise equal", None, 0)
    close = compare(rows(1, 2), rows(1, 2.00001), {}, {}, steps=2, tolerance=1e-4)
    assert (close.verdict, close.began, close.at) == ("equal within tolerance", 2, 2)
    far = compare(rows(1, 2), rows(1, 3), {}, {}, steps=2, tolerance=1e-4)
    assert far.verdict == "different"
    assert far.largest == pytest.approx(1 / 3)
    hidden = compare(rows(1, 2), rows(1, 2), {1: "a"}, {1: "b"}, steps=2, tolerance=0)
    assert (hidden.verdict, hidden.began) == ("equal within tolerance", 1)
    short = compare(rows(1, 2), rows(1), {}, {}, steps=2, tolerance=1)
    assert (short.verdict, short.began) == ("different", 2)
    broken = compare(rows(1, 2), rows(1, float("nan")), {}, {}, steps=2, tolerance=1)
    assert broken.verdict == "different"


EXPECTED = {"overrides": ["optim.warmup=2"], "steps": 4, "data": {"split": "train", "count": 6, "seed": 0}}


def test_expected_numbers_are_measured_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = tmp_path / "mine.yaml"
    small = [word for word in tiny.WORDS if word.startswith(("backbone", "trainer"))]
    recipe.write_text("# @package _global_\ndefaults:\n  - pretrain_clip\n  - _self_\nname: mine\n")
    assert reproduce(recipe, tmp_path / "out") == 2
    assert '"seeds": [0, 1, 2]' in capsys.readouterr().err
    file = tmp_path / "mine.expected.json"
    file.write_text(json.dumps({**EXPECTED, "overrides": small, "seeds": [0, 1, 2]}))
    assert reproduce(recipe, tmp_path / "out") == 2
    assert "--record" in capsys.readouterr().err
    assert reproduce(recipe, tmp_path / "out", "--record") == 0
    told = json.loads(file.read_text())
    assert set(told["measured"]) == {"0", "1", "2"}
    assert told["interval"]["of"] == "loss, mean of the last 4 steps", "there are no more"
    assert told["interval"]["low"] < told["interval"]["mean"] < told["interval"]["high"]
    assert reproduce(recipe, tmp_path / "out", "--seeds", "1,7") == 0
    text = capsys.readouterr().out
    assert "seed 1: bitwise equal: losses of 4 steps" in text
    assert "seed 7: no losses of this seed are recorded" in text
    told["measured"]["0"]["losses"] = ["9.0"] * 4
    told["interval"].update(low=8.0, high=10.0)
    told["circumstances"]["config"]["optim"]["lr"] = 0.5
    file.write_text(json.dumps(told))
    assert reproduce(recipe, tmp_path / "out") == 1
    text = capsys.readouterr().out
    assert "seed 0: different" in text
    assert "outside the interval of 3 seeds" in text
    assert "config optim.lr: 0.5 then, 0.001 now" in text
