"""Runs: what a manifest holds, what makes two runs the same, how a run is found."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from mmtrain import config
from mmtrain.errors import UserError, UserErrors
from mmtrain.run import Run, differences, identity, resolved

TOY = str(Path(__file__).parent / "toy.yaml")


def toy(*overrides: str) -> DictConfig:
    return config.compose(TOY, list(overrides))


def start(folder: Path, *overrides: str, data: str = "d1") -> Run:
    return Run.start(toy(*overrides), folder, data=data, bases={"backbone": {"path": "x", "digest": "0"}})


def test_a_manifest_holds_what_the_run_stands_on(tmp_path: Path):
    run = start(tmp_path, "seed=3")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest == run.manifest
    assert manifest["config"]["optim"]["lr"] == 0.001
    assert manifest["config"]["backbone"]["path"] == config.shipped("svd")
    assert (manifest["seed"], manifest["data"], manifest["bases"]["backbone"]["digest"]) == (3, "d1", "0")
    assert manifest["packages"]["torch"]
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["command"]
    assert run.path.name.endswith(f"-toy-{run.run_id[:8]}")
    assert [p.name for p in run.path.iterdir()] == ["manifest.json"]


def test_an_update_replaces_the_manifest_whole(tmp_path: Path):
    run = start(tmp_path)
    run.update_manifest(finished="now", loss=0.1)
    again = Run.open(run.path)
    assert (again.manifest["finished"], again.manifest["loss"], again.run_id) == ("now", 0.1, run.run_id)
    assert again.cfg.optim.lr == 0.001
    assert again.cfg == DictConfig(resolved(toy()))
    assert [p.name for p in run.path.iterdir()] == ["manifest.json"]


def name_of(*overrides: str, data: str = "d1") -> str:
    return identity(resolved(toy(*overrides)), data)


def test_identity_is_what_is_computed_not_where():
    same = ["folder=elsewhere", "logger=wandb", "logger=null", "+trainer.num_workers=2", "trainer.threads=2"]
    assert {name_of(word) for word in same} == {name_of()}
    other = ["seed=1", "optim.lr=0.002", "adapters.motion.rank=4", "dataset.shards=other", "name=x"]
    assert len({name_of(), name_of(data="d2"), *(name_of(word) for word in other)}) == len(other) + 2


def test_identity_does_not_depend_on_where_mmtrain_is_installed():
    here = resolved(toy())
    there: dict[str, Any] = json.loads(json.dumps(here))
    there["backbone"]["path"] = str(Path(config.__file__).parents[1] / "backbones" / "svd")
    assert identity(here, "d") == identity(there, "d")


def test_differences_name_the_keys(tmp_path: Path):
    run = start(tmp_path)
    assert differences(run.manifest["config"], resolved(toy("folder=elsewhere"))) == {}
    found = differences(run.manifest["config"], resolved(toy("optim.lr=0.5", "seed=1")))
    assert found == {"optim.lr": (0.001, 0.5), "seed": (0, 1)}
    bases = {"backbone": {"path": "moved", "digest": "0"}}
    assert run.not_the_same(toy(), "d1", bases) == {}
    assert run.not_the_same(toy(), "d2", {"backbone": {"digest": "1"}}) == {
        "data": ("d1", "d2"),
        "bases": ({"backbone": "0"}, {"backbone": "1"}),
    }


def test_runs_are_found_by_folder_id_and_latest(tmp_path: Path):
    runs = [start(tmp_path, f"seed={i}") for i in range(2)]
    both = sorted(runs, key=lambda run: run.path.name)
    assert Run.find("latest", tmp_path).path == both[-1].path
    for run in runs:
        assert Run.find(str(run.path), tmp_path).path == run.path
        assert Run.find(run.path.name, tmp_path).path == run.path
        assert Run.find(run.run_id[:8], tmp_path).path == run.path


def test_equal_runs_in_one_second_get_folders_of_their_own(tmp_path: Path):
    first, second = start(tmp_path), start(tmp_path)
    assert first.path != second.path
    if first.path.name == second.path.name.split(".")[0]:
        with pytest.raises(UserError, match="2 runs"):
            Run.find(first.run_id[:8], tmp_path)


def test_a_run_that_is_not_there_is_said_with_those_that_are(tmp_path: Path):
    with pytest.raises(UserError, match="holds none yet"):
        Run.find("latest", tmp_path)
    run = start(tmp_path)
    with pytest.raises(UserError, match="perhaps you meant latest"):
        Run.find("lastest", tmp_path)
    with pytest.raises(UserError, match=run.path.name):
        Run.find("zzzzzzzz", tmp_path)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Run.open(tmp_path)
    (run.path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="unreadable"):
        Run.open(run.path)
    (run.path / "manifest.json").write_text('{"config": {"name": "x"}}')
    with pytest.raises(UserError, match="unreadable"):
        Run.open(run.path)


def test_a_name_that_is_no_file_name_still_gives_a_folder(tmp_path: Path):
    assert "-a-b-" in start(tmp_path, "name='../a b'").path.name
    assert start(tmp_path, "name=''").path.parent == tmp_path


def test_a_runs_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a folder to write in"):
        start(tmp_path / "file")


def test_errors_come_back_whole_from_a_worker():
    import pickle

    error = UserError("a", "b", "c", "d")
    several = UserErrors([error, error])
    for one in (error, several):
        back = pickle.loads(pickle.dumps(one))  # noqa: S301  (as multiprocessing does with our own)
        assert (type(back), str(back)) == (type(one), str(one))
