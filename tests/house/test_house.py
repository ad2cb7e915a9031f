"""The house itself: floors, the menu and the dishes, what a wheel carries."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.config.faults import SUPPLIED
from mmtrain.config.recipe import CONF, RECIPES

ROOT = Path(__file__).resolve().parents[2]
TOY = str(Path(__file__).parent / "toy.yaml")
ALLOW = (*config.ALLOWED, "tests.house.")


def test_imports_go_down_only():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_room_called_utils():
    rooms = [path.stem for path in (ROOT / "mmtrain").rglob("*.py")]
    assert not {"utils", "util", "common", "helpers", "misc"} & set(rooms)


def test_no_torchvision():
    named = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert "torchvision" not in named
    sources = [path for path in (ROOT / "mmtrain").rglob("*.py") if "torchvision" in path.read_text()]
    assert sources == []


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=]", word)[0].lower() for word in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert names <= pinned


FOLDER = ["dataset.folder=photographs"]
ASKED = dict.fromkeys(("align_adapter", "align_fewshot", "brand_fewshot", "brand_motion", "brand_style"), FOLDER)
"""What a recipe leaves to its user."""


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_has_no_fault(recipe: str):
    assert [str(fault) for fault in config.check(config.compose(recipe, ASKED.get(recipe, [])))] == []


@pytest.mark.parametrize("recipe", sorted(ASKED))
def test_what_is_left_to_the_user_is_asked_for(recipe: str):
    keys = [word.split("=")[0] for word in ASKED[recipe]]
    assert [fault.where for fault in config.check(config.compose(recipe))] == keys


MENU = sorted(path for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("path", MENU, ids=[f"{path.parent.name}/{path.stem}" for path in MENU])
def test_every_option_of_the_menu_has_no_fault(path: Path):
    """What an option leaves as ??? is the recipe's to fill."""
    group = path.parent.name
    if group == "logger":
        cfg, supplied = config.compose(TOY, [f"logger={path.stem}"]), SUPPLIED
    else:
        cfg = config.compose(TOY, [f"+{group}@adapters.option={path.stem}"])
        supplied = {"adapters.option": SUPPLIED.get(group, ())}
        assert "_target_" in OmegaConf.to_container(cfg.adapters.option)
    faults = config.check(cfg, allow=ALLOW, supplied={**SUPPLIED, **supplied})
    assert [str(fault) for fault in faults if fault.came != "still ???"] == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel]
    subprocess.run(install, check=True)
    return folder / "site"


def test_the_wheel_carries_the_menu_the_dishes_and_the_backbones(installed: Path):
    for ours, theirs in ((CONF, "conf"), (RECIPES, "recipes"), (ROOT / "data" / "backbones", "backbones")):
        files = [path.relative_to(ours) for path in ours.rglob("*") if path.is_file()]
        assert [str(f) for f in files if not (installed / "mmtrain" / theirs / f).is_file()] == []
    assert not (installed / "tests").exists()


def test_an_installed_wheel_works_from_an_empty_folder(installed: Path, tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def mmtrain(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "mmtrain", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    checked = mmtrain("check", "svd_text_bridge")
    assert (checked.returncode, checked.stderr) == (0, "")
    shown = mmtrain("train", TOY, "--cfg", "job", "--resolve")
    assert f"path: {installed / 'mmtrain' / 'backbones' / 'svd'}" in shown.stdout, shown.stderr
    assert list(tmp_path.iterdir()) == []
    made = mmtrain("shards", "world", "data/shards/stills", "--stills", "--count", "8")
    assert made.returncode == 0, made.stderr
    trained = mmtrain("train", "pretrain_clip", "trainer.steps=10", "trainer.batch_size=4", "trainer.threads=1")
    assert trained.returncode == 0, trained.stderr
    assert list(tmp_path.glob("runs/*/checkpoints/step-00000010/weights.safetensors"))


def test_make_lists_its_targets():
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    done = subprocess.run(["make", "-s", "-C", ROOT], capture_output=True, text=True)
    listed = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert listed >= {"demo", "test", "lint", "backbones", "bench", "clean"}
