"""Checkpoints: whole or passed over by name, the newest and the best kept, another identity refused with its keys."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from mmtrain import cli
from mmtrain.errors import UserError
from mmtrain.run import Run, checkpoints
from tests import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="module")
def done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.train(shards, tmp_path_factory.mktemp("runs"), "trainer.keep=3")


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(done, tmp_path / "runs" / done.name))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def files(run: Path, step: int) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (run / "checkpoints" / f"step-{step:08d}").iterdir()}
    return found | {"metrics": (run / "metrics.csv").read_bytes(), "digests": (run / "digests.csv").read_bytes()}


def test_a_checkpoint_holds_what_trains_and_a_manifest_of_it(run: Path):
    assert names(run) == ["step-00000002", "step-00000004", "step-00000006"]
    held = json.loads((run / "checkpoints/step-00000006/manifest.json").read_text())["files"]
    assert set(held) == {"weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
    assert checkpoints.newest(run / "checkpoints").name == "step-00000006"
    digests = {row["step"]: row["weights"] for row in csv.DictReader((run / "digests.csv").open())}
    assert list(digests) == ["1", "2", "5"]
    second = json.loads((run / "checkpoints/step-00000002/manifest.json").read_text())["files"]
    assert digests["2"] == second["weights.safetensors"]["sha256"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


TORN = {
    "cut": (lambda c: truncate(c / "optimizer.safetensors"), "optimizer.safetensors has"),
    "flipped": (lambda c: flip(c / "ema.safetensors"), "ema.safetensors holds other bytes"),
    "file lost": (lambda c: (c / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
    "half a manifest": (lambda c: truncate(c / "manifest.json"), "manifest.json is unreadable"),
}


@pytest.mark.parametrize("how", TORN)
def test_a_torn_checkpoint_is_named_and_passed_over(how: str, run: Path):
    harm, told = TORN[how]
    harm(run / "checkpoints/step-00000006")
    said: list[str] = []
    assert checkpoints.newest(run / "checkpoints", say=said.append).name == "step-00000004"
    assert len(said) == 1
    assert "step-00000006" in said[0]
    assert told in said[0]


def test_a_run_goes_on_from_the_whole_one_before_and_leaves_the_same_bytes(
    run: Path, done: Path, capsys: pytest.CaptureFixture[str]
):
    flip(run / "checkpoints/step-00000006/weights.safetensors")
    (run / "checkpoints/.step-00000008.part").mkdir()
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert "step-00000006" in capsys.readouterr().err
    assert files(run, 6) == files(done, 6)
    assert names(run) == names(done)
    assert "passed over" in (run / "log.txt").read_text()


def test_where_none_is_whole_each_is_named(run: Path):
    for path in (run / "checkpoints").iterdir():
        truncate(path / "state.json")
    with pytest.raises(UserError, match=r"no whole checkpoint \(step-00000006: .*step-00000004: .*step-00000002: "):
        checkpoints.newest(run / "checkpoints", say=lambda text: None)


def test_the_best_is_kept_beside_the_newest(shards: Path, tmp_path: Path):
    """At this rate the loss rises, so that the first checkpoint is the best."""
    words = [
        "trainer.keep=1",
        "trainer.best=heldout",
        "trainer.steps=8",
        "optim.lr=0.5",
        "+dataset@heldout=world_frames",
    ]
    run = tiny.train(shards, tmp_path, *words, f"heldout.shards={shards}", "trainer.heldout_batches=1")
    losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader((run / "heldout.csv").open())}
    assert list(losses) == [0, 2, 4, 6, 8]  # 0 is the base
    lowest = min(list(losses)[1:], key=lambda step: losses[step])
    best = checkpoints.best(run / "checkpoints")
    assert best is not None
    assert checkpoints.step_of(best) == lowest
    assert checkpoints.fault(best) is None
    assert [p.name for p in checkpoints.listed(run / "checkpoints")] == sorted({best.name, "step-00000008"})


def test_another_identity_is_refused_with_its_keys_unless_allowed(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
):
    again = tiny.words(shards, run.parent, "trainer.steps=8", "optim.lr=0.5", "--resume", str(run))
    assert cli.main(again) == 2
    told = capsys.readouterr().err
    assert "trainer.steps: 6 then, 8 now" in told
    assert "optim.lr: 0.001 then, 0.5 now" in told
    assert "--allow optim.lr --allow trainer.steps" in told
    assert cli.main([*again, "--allow", "trainer.steps"]) == 2
    assert "optim.lr" in capsys.readouterr().err
    assert cli.main([*again, "--allow", "trainer", "--allow", "optim.lr"]) == 0
    changed = Run.open(run)
    assert checkpoints.newest(run / "checkpoints").name == "step-00000008"
    assert changed.cfg.trainer.steps == 8
    [change] = changed.manifest["changes"]
    assert (change["step"], change["was"]) == (6, {"trainer.steps": 6, "optim.lr": 0.001})


def test_other_data_and_other_code_are_another_identity(
    run: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("mmtrain.train.resume.code_version", lambda: "other")
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert "code: " in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(run), "--allow", "code"]) == 0
    monkeypatch.undo()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"data": "others"}))
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert "data: 'others' then" in capsys.readouterr().err


def test_auto_starts_a_run_or_goes_on_with_the_same_one(shards: Path, run: Path, done: Path):
    auto = ["--resume", "auto"]
    shutil.rmtree(run / "checkpoints/step-00000006")
    assert cli.main(tiny.words(shards, run.parent, "trainer.keep=3", *auto)) == 0
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert files(run, 6) == files(done, 6)
    assert cli.main(tiny.words(shards, run.parent, "seed=1", *auto)) == 0
    assert len(list(run.parent.iterdir())) == 2
