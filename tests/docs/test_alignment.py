"""docs/alignment.md: each command that it shows is one, and prints what the table of real models says."""

import os
import re
from pathlib import Path

import pytest

from mmtrain import cli, config
from tests.docs.test_journeys import DOCS, commands

PAGE = DOCS / "alignment.md"
CHECKS = [words for words in commands("alignment") if words[0] == "check"]
SLOW = [] if os.environ.get("RESUME_PROOF") == "full" else ["align_adapter", "align_siglip", "align_world"]


def row(recipe: str) -> list[str]:
    [found] = re.findall(rf"^\| `{recipe}` \| (\d.*) \|$", PAGE.read_text(), re.MULTILINE)
    return [cell.strip() for cell in found.split("|")]


def test_every_recipe_of_alignment_has_its_row_and_its_command():
    recipes = sorted(path.stem for path in (DOCS.parent / "recipes").glob("align_*.yaml"))
    assert sorted(words[1] for words in CHECKS) == recipes
    assert all(len(row(recipe)) == 6 for recipe in recipes)


@pytest.mark.parametrize("words", [words for words in CHECKS if words[1] not in SLOW], ids=lambda words: words[1])
def test_the_table_holds_what_the_command_prints(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    weights, load, encode, step, operations, time = row(words[1])
    assert f"weights: {weights} train" in said
    assert f"  load: {load}\n" in said
    assert f"  encode: {encode}\n" in said if encode else "encode:" not in said
    assert f"  step: {step}\n" in said
    assert f"time: {operations} a step" in said
    assert ("less than starting" if time.startswith("less") else time) in said


@pytest.mark.parametrize("words", CHECKS, ids=lambda words: words[1])
def test_a_command_that_is_shown_is_one(words: list[str]):
    args = cli._parse(words)
    assert [str(fault) for fault in config.check(config.compose(args.recipe, args.overrides))] == []
