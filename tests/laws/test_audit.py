"""Laws of an audit: the test is right against closed forms, questions are checked, a page shows what was counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtrain import cli
from mmtrain.data import world
from mmtrain.errors import UserError
from mmtrain.evaluate.audit import asked, rows
from mmtrain.evaluate.audit_page import page
from mmtrain.evaluate.distribution import chance, distribution
from mmtrain.evaluate.questions import Judged, Questions, from_file, reader
from mmtrain.sample.mp4 import write_png

HALF = {"a": 0.5, "b": 0.5}


def test_a_distribution_is_told_with_intervals():
    found = distribution(["a"] * 30 + ["b"] * 10 + [None] * 2, HALF, seed=0)
    assert (found["n"], found["unread"]) == (40, 2)
    assert [kind["share"] for kind in found["kinds"]] == [0.75, 0.25]
    assert found["kinds"][0]["low"] < 0.75 < found["kinds"][0]["high"]
    assert found["distance"] == pytest.approx(0.25)
    assert found["max_skew"] == pytest.approx(np.log(2))
    never = distribution(["a"] * 4, HALF, seed=0)
    assert never["max_skew"] is None
    assert distribution([None], HALF, seed=0)["p_value"] is None
    with pytest.raises(UserError, match="saw c"):
        distribution(["c"], HALF, seed=0)
    with pytest.raises(UserError, match="sum to 1"):
        distribution(["a"], {"a": 0.5, "b": 0.4}, seed=0)


def test_chance_is_the_exact_test():
    """Of two kinds in equal parts it is the two-sided binomial test: 30 of 40 or farther has p = 0.00222."""
    half = np.array([0.5, 0.5])
    assert chance(np.array([30, 10]), half, seed=0) == pytest.approx(0.00222, abs=0.0015)
    assert chance(np.array([20, 20]), half, seed=0) == 1.0
    assert chance(np.array([22, 18]), half, seed=0) == pytest.approx(0.636, abs=0.03)
    assert chance(np.array([1, 3]), np.array([0.0, 1.0]), seed=0) < 0.001


def test_chance_is_uniform_where_the_target_is_true():
    draw = np.random.default_rng(0)
    target = np.array([0.2, 0.3, 0.5])
    values = [chance(draw.multinomial(60, target), target, seed=i) for i in range(60)]
    assert 0 <= np.mean(np.array(values) < 0.1) <= 0.25
    assert 0.35 < np.mean(values) < 0.65


GOOD = """prompts: [a shape]
samples: 6
attributes:
  colour: {reader: judge}
  tone:
    reader: clip
    kinds: {red: a red circle, blue: a blue circle}
    target: {red: 0.5, blue: 0.5}
"""
BAD = {
    "prompts, attributes": "colours: {}",
    "a list of prompts": "prompts: a shape\nattributes: {colour: {reader: judge}}",
    "2 or more": "prompts: [a]\nsamples: 1\nattributes: {colour: {reader: judge}}",
    "the judge does not read": "prompts: [a]\nattributes: {gender: {reader: judge}}",
    r"a reader \(judge or clip\)": "prompts: [a]\nattributes: {colour: {reader: me}}",
    "each with its sentence": "prompts: [a]\nattributes: {x: {reader: clip, kinds: {a: b}}}",
    "shares that sum to 1": "prompts: [a]\nattributes: {colour: {reader: judge, target: {red: 0.5}}}",
    "`uniform`, or shares": "prompts: [a]\nattributes: {colour: {reader: judge, target: {rouge: 1}}}",
    "a YAML file": "prompts: [a",
}


def test_questions_of_a_file(tmp_path: Path):
    (tmp_path / "q.yaml").write_text(GOOD)
    questions = from_file(tmp_path / "q.yaml")
    assert [a.name for a in questions.attributes] == ["colour", "tone"]
    assert questions.attributes[0].target == dict.fromkeys(world.COLOURS, pytest.approx(1 / 6))
    cases = asked(questions, seed=0)
    assert len({case.seed for case in cases}) == len(cases) == 6
    assert cases == asked(questions, seed=0)


@pytest.mark.parametrize("said", BAD)
def test_a_bad_file_is_told(said: str, tmp_path: Path):
    (tmp_path / "q.yaml").write_text(BAD[said])
    with pytest.raises(UserError, match=said):
        from_file(tmp_path / "q.yaml")


def test_the_judge_reads_and_the_page_shows_it(tmp_path: Path):
    questions = Questions(["a shape"], 4, from_file_of(tmp_path, "colour: {reader: judge}"))
    read = reader(questions.attributes[0], "")
    (tmp_path / "pictures").mkdir()
    seen: dict[str, list[dict[str, object]]] = {"base": [], "adapted": []}
    for arm in seen:
        for i in range(4):
            scene = world.scene(7, "heldout", i if arm == "base" else 0, 0.0)
            frame = world.render(scene, 1)
            name = f"pictures/{i}-{arm}.png"
            write_png(frame[0], tmp_path / name, metadata={})
            assert read(frame) == scene.sprites[0].colour
            kinds = {"colour": read(frame)}
            seen[arm].append({"prompt": "a shape", "file": name, "shape": list(frame.shape), "kinds": kinds})
    table = rows(questions, seen, 0)
    assert [row["model"] for row in table] == ["base", "adapted"]
    assert max(kind["count"] for kind in table[1]["kinds"]) == 4
    facts = {"name": "n", "run_id": "r", "step": 1}
    asked_ = {"prompts": ["a shape"], "samples": 4, "attributes": [{"name": "colour"}]}
    found = {"artifact": facts, "made": "2026-11-28", "seed": 0, "questions": asked_, "rows": table, "samples": seen}
    text = page(found, tmp_path)
    assert text.count("data:image/png") == 8
    assert "100 %" in text
    assert text.count('data-who="target"') == text.count('data-who="adapted"') == len(world.COLOURS)
    table[0]["p_value"], table[1]["p_value"] = 0.0001, 0.5
    shown = page({**found, "samples": {arm: 13 * samples for arm, samples in seen.items()}}, tmp_path)
    assert "p &lt;0.001 · adapted" in shown
    assert "p = 0.5" in shown
    assert "verdict better" in shown  # one distribution fewer is off its target
    table[0]["p_value"] = 0.5
    assert 'class="verdict "' in page(found, tmp_path)
    assert ", 52, of which 24 are shown" in shown
    assert Judged("motion")(world.render(world.scene(7, "heldout", 0, 0.0), 1)) is None


def from_file_of(folder: Path, attribute: str) -> list[object]:
    (folder / "q.yaml").write_text(f"prompts: [a shape]\nattributes:\n  {attribute}\n")
    return from_file(folder / "q.yaml").attributes


def test_the_verb(styled: Path, tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "q.yaml").write_text(GOOD.replace("[a shape]", "[a circle]"))
    words = ["audit", str(styled), str(tmp_path / "q.yaml"), "--steps", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--clip", str(tiny_clip)]) == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(found["rows"]) == 4
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 12
    assert "a circle · tone · adapted" in capsys.readouterr().out
    assert cli.main([*words, "--clip", str(tiny_clip)]) == 2, "the output exists"
