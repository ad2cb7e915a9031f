"""Each recipe gives its expected numbers, to the bit on the same machine and code, else within its interval; and its
first steps again, from the manifest alone. Short: some recipes; `make reproduce-proof` takes all."""

import os
import shutil
from pathlib import Path

import pytest

from mmtrain import cli
from mmtrain.config.recipe import RECIPES
from mmtrain.reproduce import expected

FULL = os.environ.get("REPRODUCE_PROOF") == "full"
NAMED = sorted(path.name.removesuffix(".expected.json") for path in RECIPES.glob("*.expected.json"))
EVERY = [recipe for recipe in NAMED if "measured" in expected.read(recipe)]
QUICK = ("pretrain_clip", "pretrain_codec")  # from nothing, so that new backbones do not move them
STEPS = 50


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data and encoder outputs of all recipes go, made once."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.skipif(not FULL, reason="in make reproduce-proof")
def test_every_recipe_is_measured():
    """`make expected` measures those that are not."""
    assert [recipe for recipe in NAMED if recipe not in EVERY] == []


@pytest.mark.parametrize("recipe", EVERY if FULL else QUICK)
def test_a_recipe_gives_what_is_expected(recipe: str, out: Path, capsys: pytest.CaptureFixture[str]):
    status = cli.main(["reproduce", recipe, "--out", str(out)])
    told = capsys.readouterr().out
    assert status == 0, told
    if FULL:
        with capsys.disabled():
            print(f"\n{recipe}: {[line for line in told.splitlines() if line.startswith('seed')]}")


@pytest.mark.skipif(not FULL, reason="in make reproduce-proof; of a run of a second in test_reproduce.py")
@pytest.mark.parametrize("recipe", EVERY)
def test_its_first_steps_again_from_the_manifest_alone(
    recipe: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = expected.read(recipe)
    done = expected.run(recipe, told, expected.data_words(told["data"], out), 0, STEPS, out).folder
    record = tmp_path / "exported" / "run"
    record.mkdir(parents=True)
    for name in ("manifest.json", "metrics.csv", "digests.csv"):
        shutil.copy(done / name, record)
    shutil.rmtree(done)
    capsys.readouterr()
    assert cli.main(["reproduce", str(record.parent), "--steps", str(STEPS), "--out", str(tmp_path / "again")]) == 0
    *_, verdict, differs, _ = capsys.readouterr().out.splitlines()
    with capsys.disabled():
        print(f"\n{recipe}: {verdict}; {differs}")
    assert verdict.startswith(f"bitwise equal: losses of {STEPS} steps; weights behind step")
    assert differs == "nothing differs in code, packages, hardware, data and config"


@pytest.mark.parametrize("recipe", EVERY)
def test_expected_numbers_name_no_folder_of_the_machine_they_were_measured_on(recipe: str):
    assert '"/' not in expected.file_of(recipe).read_text()


@pytest.mark.parametrize("recipe", EVERY)
def test_an_interval_says_over_how_many_steps_it_is(recipe: str):
    told = expected.read(recipe)
    assert f"last {min(5, told['steps'])} steps" in told["interval"]["of"]
    assert all(len(measured["losses"]) == told["steps"] for measured in told["measured"].values())
