"""Sweeps through Hydra's plug-ins: Optuna's sweeper, and submitit's launcher on this machine. Skipped without them."""

import json
import re
from pathlib import Path

import pytest
import yaml

from mmtrain import cli
from mmtrain.run import ending_loss
from tests import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("sweeps") / "world")


def sweep(shards: Path, runs: Path, *more: str) -> int:
    small = ["trainer.steps=3", "trainer.checkpoint_every=3", "trainer.ema=null"]
    return cli.main([*tiny.words(shards, runs, *small), "-m", f"hydra.sweep.dir={runs / 'sweep'}", *more])


def optuna(trials: int) -> list[str]:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper")
    pytest.importorskip("optuna").logging.disable_default_handler()  # it keeps the stream of the test that it began in
    fixed = ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
    return ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}", *fixed]


def submitit() -> str:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher.submitit_launcher")
    return "hydra/launcher=submitit_local"


def rates(runs: Path) -> dict[float, float]:
    """Learning rate of each run → its loss at the end."""
    found = {}
    for manifest in runs.glob("*/manifest.json"):
        config = json.loads(manifest.read_text())["config"]
        found[config["optim"]["lr"]] = ending_loss(manifest.parent)
    return found


def digests(runs: Path) -> dict[str, str]:
    """Id of each run → the digests of its weights behind steps."""
    return {run.name.rpartition("-")[2]: (run / "digests.csv").read_text() for run in runs.glob("*pretrain_clip*")}


def test_optuna_searches_for_the_smallest_loss(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert sweep(shards, tmp_path, *optuna(3), "optim.lr=interval(1e-4,1e-2)") == 0
    tried = rates(tmp_path)
    assert len(tried) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in tried)
    best = min(tried, key=lambda rate: tried[rate])
    told = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert list(told["best_params"].values()) == [best]
    assert told["best_value"] == tried[best]
    said = capsys.readouterr().out
    assert f"sweep: {tmp_path / 'sweep'}\n" in said
    assert f"best of the sweep: optim.lr={best}, loss {tried[best]:.4g} (" in said


def test_a_mistake_in_a_search_is_the_users(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert sweep(shards, tmp_path, *optuna(2), "optim.lr=interval(-2.0,-1.0)") == 2
    told = capsys.readouterr().err
    assert len(re.findall(r"^mmtrain: optim.lr: -1\.\d+; a positive learning rate; ", told, re.MULTILINE)) == 1
    assert "Traceback" not in told


def test_submitits_jobs_are_the_runs_that_one_gets_here(shards: Path, tmp_path: Path):
    launcher = submitit()
    assert sweep(shards, tmp_path / "jobs", launcher, "seed=1,2") == 0
    assert sweep(shards, tmp_path / "here", "seed=1,2") == 0
    assert digests(tmp_path / "jobs") == digests(tmp_path / "here")
    assert len(digests(tmp_path / "jobs")) == 2


def test_a_mistake_in_submitits_job_is_the_users(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert sweep(shards, tmp_path, submitit(), "seed=1", "optim.lr=-1.0") == 2
    told = capfd.readouterr()
    assert told.err.endswith("mmtrain: optim.lr: -1.0; a positive learning rate; try 1e-4.\n")
    assert f"what its jobs write: {tmp_path / 'sweep' / '.submitit'}" in told.out
