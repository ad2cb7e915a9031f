"""The command line as a person meets it: its surface, its exit statuses, its blocks of text; Hydra behind `train`."""

import argparse
import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmtrain import cli
from mmtrain.errors import UserError, UserErrors

HERE = Path(__file__).parent
TOY = str(HERE / "toy.yaml")
SURFACE = HERE / "surface.txt"


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from (f"{name} {line}".strip() for line in ["", *options(sub)])
        elif not isinstance(action, argparse._HelpAction):
            names = " ".join(action.option_strings) or str(action.metavar or action.dest)
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            yield f"{names}{choices}{' (required)' if action.required and action.option_strings else ''}"


def test_the_surface_is_frozen():
    """A verb or an option that comes or goes is a decision: change surface.txt in the same commit."""
    assert "\n".join(options(cli.parser())) + "\n" == SURFACE.read_text()


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def test_a_usage_line_is_a_command_line():
    """It opens with all verbs, also nested ones, and names what must be given."""
    seen = list(parsers(cli.parser()))
    for parser in seen:
        usage = " ".join(parser.format_usage().split())
        assert usage.startswith(f"usage: {parser.prog} ")
        for action in parser._actions:
            if action.required and action.option_strings:
                assert f" {action.option_strings[0]} " in usage
    assert {"mmtrain", "mmtrain shards encode", "mmtrain reproduce"} <= {parser.prog for parser in seen}


HEAVY = ("torch", "hydra", "omegaconf", "numpy", "rich", "pytorch_lightning", "diffusers", "PIL", "av")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["sample", "--help"], ["bogus"]])
def test_help_imports_nothing_slow(words: list[str]):
    code = f"import sys\nfrom mmtrain.cli import main\ntry:\n    main({words!r})\nexcept SystemExit: pass\n"
    code += f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\nsys.exit(str(loaded) if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr


MISTAKES = {
    "trian toy": "perhaps you meant train",
    "shards wrld x": "perhaps you meant world",
    "train": "a RECIPE is required",
    "check": "RECIPE",
    "train nothing_like_it": "unknown recipe",
    "check nothing_like_it": "unknown recipe",
    "check ./nothing_like_it.yaml": "no such recipe file",
    "train toy --reusme latest": "unrecognised: --reusme",
    "export latest extra": "unrecognised: extra",
    "shards world out --count 0": "whole number above 0",
    "shards world out --two-objects 1.5": "share between 0 and 1",
    "shards check nowhere": "nowhere",
    "train --resume nothing_like_it": "no such run",
    f"train {TOY} seed=x": "seed: 'x' (str); int",
    f"train {TOY} logger=wadb": "perhaps you meant wandb",
    f"train {TOY} seed=1,2": "add -m",
    f"train {TOY} seed=[1": "grammar",
    f"train {TOY} -m seed=x,1": "int",
    f"train {TOY} --cfg jbo": "perhaps you meant job",
    f"train {TOY} --config-dir nowhere": "nowhere",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_block_and_status_2(
    line: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mmtrain.train.fit", types.SimpleNamespace(fit=_not_reached))
    assert cli.main(line.split()) == 2
    out, err = capfd.readouterr()
    assert MISTAKES[line] in err
    assert "Traceback" not in err
    if "-m" in line.split():  # a sweep says where it is before its first run
        assert out.count("\n") == 1
        assert out.startswith("sweep: ")
    else:
        assert out == ""
        assert err.startswith("mmtrain: ")
        assert list(tmp_path.iterdir()) == []


def _not_reached(*args: Any, **kwargs: Any) -> Path:
    raise AssertionError("a config with faults was handed on")


def test_trace_shows_where_a_mistake_was_found():
    with pytest.raises(UserError):
        cli.main(["--trace", "check", "nothing_like_it"])
    with pytest.raises(UserError):
        cli.main(["check", "nothing_like_it", "--trace"])


def test_several_mistakes_are_one_block(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    errors = [UserError("a", "x", "y", "z"), UserError("b", "x", "y", "z.")]

    def refuse(*args: Any) -> None:
        raise UserErrors(errors)

    monkeypatch.setattr("mmtrain.config.compose", refuse)
    assert cli.main(["check", "toy"]) == 2
    assert capsys.readouterr().err == "mmtrain: 2 mistakes\n  a: x; y; z.\n  b: x; y; z.\n"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Hydra's --info turns logging up for the whole process."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("hydra")]:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, Any]]:
    """`fit` replaced by a list of what it was called with, and the toy's targets allowed."""
    calls: list[tuple[Any, Any]] = []

    def fit(cfg: Any, ask: Any) -> Path:
        calls.append((cfg, ask.resume))
        return tmp_path

    monkeypatch.setitem(sys.modules, "mmtrain.train.fit", types.SimpleNamespace(fit=fit))
    monkeypatch.setattr("mmtrain.config.checked", lambda cfg: cfg)
    monkeypatch.chdir(tmp_path)
    return calls


def test_train_calls_fit_once_and_leaves_no_folder_of_hydras(fitted: list[Any], tmp_path: Path):
    assert cli.main(["train", TOY, "seed=3", "optim.lr=0.5"]) == 0
    [(cfg, resume)] = fitted
    assert (cfg.name, cfg.seed, cfg.optim.lr, resume) == ("toy", 3, 0.5, None)
    assert "hydra" not in cfg
    assert list(tmp_path.iterdir()) == []


def test_train_sweeps_like_any_hydra_application(fitted: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n")  # what a sweeper is told of a run
    words = ["-m", "seed=1,2", "logger=local,wandb", "hydra/launcher=basic", "hydra.sweep.dir=swept"]
    assert cli.main(["train", TOY, *words]) == 0
    assert [(cfg.seed, "wandb" in cfg.logger) for cfg, _ in fitted] == [(1, False), (1, True), (2, False), (2, True)]
    assert cli.main(["train", "--multirun", TOY, "seed=range(3)", "hydra.sweep.dir=swept"]) == 0
    assert [cfg.seed for cfg, _ in fitted[4:]] == [0, 1, 2]
    assert capsys.readouterr().out.splitlines() == ["sweep: swept", "sweep: swept"]
    found = "name: search\nbest_params:\n  ++optim.lr: 0.5\n  seed: 3\nbest_value: 0.25\n"
    (tmp_path / "swept" / "optimization_results.yaml").write_text(found)
    assert cli.main(["train", "-m", TOY, "seed=1", "hydra.sweep.dir=swept"]) == 0
    told = "best of the sweep: optim.lr=0.5 seed=3, loss 0.25 (swept/optimization_results.yaml)"
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_train_prints_its_config(fitted: list[Any], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "--cfg", "job", TOY, "seed=5"]) == 0
    assert "seed: 5\n" in capsys.readouterr().out
    assert cli.main(["train", TOY, "--cfg", "job", "--package", "backbone", "--resolve"]) == 0
    assert "backbones/svd" in capsys.readouterr().out
    assert cli.main(["train", TOY, "--info", "searchpath"]) == 0
    assert "recipes" in capsys.readouterr().out
    assert fitted == []


def test_a_group_of_ones_own(fitted: list[Any], tmp_path: Path):
    (tmp_path / "own" / "logger").mkdir(parents=True)
    (tmp_path / "own" / "logger" / "none.yaml").write_text("{}\n")
    assert cli.main(["train", TOY, "--config-dir", "own", "logger=none"]) == 0
    assert fitted[0][0].logger == {}


@pytest.mark.parametrize("sweep", [False, True])
def test_a_users_mistake_inside_a_job_is_status_2_and_a_bug_keeps_its_trace(
    sweep: bool, monkeypatch: pytest.MonkeyPatch, fitted: list[Any], capfd: pytest.CaptureFixture[str]
):
    words = ["train", TOY, *(["-m", "seed=1,2", "hydra.sweep.dir=swept"] if sweep else [])]

    def refuse(cfg: Any, ask: Any) -> Path:
        raise UserError("data", "empty", "samples", "add some")

    monkeypatch.setattr(sys.modules["mmtrain.train.fit"], "fit", refuse)
    assert cli.main(words) == 2
    err = capfd.readouterr().err
    assert err.endswith("mmtrain: data: empty; samples; add some.\n")
    assert "Traceback" not in err
    assert sweep or err.count("\n") == 1

    def bug(cfg: Any, ask: Any) -> Path:
        raise ValueError("ours")

    monkeypatch.setattr(sys.modules["mmtrain.train.fit"], "fit", bug)
    with pytest.raises(ValueError, match="ours"):
        cli.main(words)


def test_an_interruption_is_status_130(
    monkeypatch: pytest.MonkeyPatch, fitted: list[Any], capfd: pytest.CaptureFixture[str]
):
    def stop(cfg: Any, ask: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["mmtrain.train.fit"], "fit", stop)
    assert cli.main(["train", TOY]) == 130
    assert capfd.readouterr().err == "mmtrain: interrupted\n"


def test_a_place_that_cannot_be_written_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert cli.main(["shards", "world", str(tmp_path / "file" / "out"), "--count", "2"]) == 2
    assert capsys.readouterr().err.startswith("mmtrain: ")


def test_make_world_and_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "world")
    assert cli.main(["shards", "world", out, "--count", "3", "--shard-size", "2"]) == 0
    assert cli.main(["shards", "index", out]) == 0
    assert "3 samples in 2 shards" in capsys.readouterr().out
    assert cli.main(["shards", "check", out]) == 0
    assert cli.main(["shards", "world", out, "--count", "3"]) == 2
