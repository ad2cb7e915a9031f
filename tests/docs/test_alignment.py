"""docs/alignment.md: each command that it shows is one, and prints what the table of real models says."""

import os
import re
from glob import glob
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


def test_a_vocabulary_of_ones_own_is_asked_as_the_page_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    [metric] = re.findall(r"```yaml\n(_target_: .*zero_shot.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "names.yaml").write_text(metric)
    few = {"200,0": "6,0", "300": "8", "200": "5"}
    done = [words for words in commands("alignment") if words[0] in ("shards", "train", "evaluate")]
    assert [words[0] for words in done] == ["shards", "shards", "train", "evaluate"]
    for words in done:
        small = [few.get(word, word) for word in words] + ["trainer.steps=2"] * (words[0] == "train")
        last = [found for word in small for found in (sorted(glob(word)) if "*" in word else [word])]
        assert cli.main(last) == 0
    told = capsys.readouterr().out
    assert "zero-shot classes · 5 pairs" in told
    said = " ".join(path.read_text() for path in (tmp_path / "names").glob("*.txt"))
    assert re.search("zorbit|kweep|ploon|vantu", said)
    assert not re.search(r"(?<!in a )(circle|square|triangle|cross)", said), "every shape has its new name"


def test_a_name_for_what_the_world_does_not_hold_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.main(["shards", "world", str(tmp_path / "x"), "--count", "2", "--rename", "rhombus=zorbit"]) == 2
    assert "rename: 'rhombus'" in capsys.readouterr().err
    words = ["shards", "world", str(tmp_path / "x"), "--count", "2", "--split", "clutter", "--rename", "circle=zorbit"]
    assert cli.main(words) == 2, "clutter has no captions"
    assert "rename: clutter" in capsys.readouterr().err
    words = ["shards", "world", str(tmp_path / "x"), "--count", "2", "--split", "clutter", "--pace", "0.6"]
    assert cli.main(words) == 2
    assert "pace: clutter" in capsys.readouterr().err
    assert cli.main([*words[:-2], "--motions", "still=0.5"]) == 2
    assert "motions: clutter" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing half written"
