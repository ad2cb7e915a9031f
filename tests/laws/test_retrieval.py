"""Laws of the metrics of a shared space: ranks and their ties, classes by prompts, probes, and pairs told apart."""

from pathlib import Path

import numpy as np
import pytest

from mmtrain.data.shards import write_world
from mmtrain.errors import UserError
from mmtrain.evaluate import aligned_page, page, pairs, table
from mmtrain.evaluate.alignment import tabled
from mmtrain.evaluate.embedded import Embedded, Item, shape_of_space
from mmtrain.evaluate.linear_probe import LinearProbe, fitted
from mmtrain.evaluate.retrieval import RANK, Retrieval, median_row, ranks
from mmtrain.evaluate.run import metric
from mmtrain.evaluate.zero_shot import Question, ZeroShot

FRAME = np.zeros((1, 4, 4, 3), np.uint8)
WORDS = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 1.0, 0.0], "green": [0.0, 0.0, 1.0]}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def seen(text: np.ndarray, visual: np.ndarray, colours: list[str] | None = None) -> Embedded:
    colours = colours or ["red"] * len(text)
    items = [Item(f"i{i}", f"caption {i}", FRAME, {"objects": [{"colour": c}]}) for i, c in enumerate(colours)]
    embed = lambda prompts: unit(np.array([WORDS[p.split()[-1]] for p in prompts]))  # noqa: E731
    return Embedded(items, unit(text), unit(visual), embed)


def test_ranks_are_those_of_a_sort():
    similarity = np.random.default_rng(0).normal(size=(30, 30))
    wanted = [1 + int(np.where(np.argsort(-row) == i)[0][0]) for i, row in enumerate(similarity)]
    assert ranks(similarity).tolist() == wanted


def test_a_tie_counts_against_the_right_one():
    assert ranks(np.ones((4, 4))).tolist() == [4, 4, 4, 4]
    assert ranks(np.array([[0.5, 0.5, 0.1], [0.2, 0.9, 0.9], [0.0, 0.1, 0.2]])).tolist() == [2, 2, 1]
    collapsed = seen(np.ones((5, 3)), np.ones((5, 3)))
    found = Retrieval(at=[1, 5])(collapsed)["text → visual"]
    assert [row["R@1"] for row in found] == [False] * 5
    assert [row["R@5"] for row in found] == [True] * 5


def test_both_directions_are_asked():
    text = np.array([[1.0, 0.0], [0.9, 0.4]])
    visual = np.array([[1.0, -0.8], [1.0, 0.0]])
    found = Retrieval(at=[1])(seen(text, visual))
    assert [row["R@1"] for row in found["text → visual"]] == [False, True]
    assert [row["R@1"] for row in found["visual → text"]] == [True, False]


def test_the_median_rank_has_an_interval_that_narrows_with_the_queries():
    rng = np.random.default_rng(1)
    few, many = (rng.integers(1, 60, n) for n in (12, 600))
    narrow, wide = (median_row("pairs", "x", some, some, 0)["base"] for some in (many, few))
    assert narrow["low"] <= np.median(many) <= narrow["high"]
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]
    better = median_row("pairs", "x", many, np.ones(600, int), 0)
    assert (better["difference"]["high"] < 0, better["p_value"] < 0.01, better["better"]) == (True, True, "lower")


def test_templates_are_averaged_and_the_nearest_class_is_told():
    visual = np.array([WORDS["red"], WORDS["blue"], WORDS["green"]])
    question = Question(of="objects.0.colour", names=["red", "blue", "green"], templates=["a {}", "one {}"])
    found = ZeroShot(questions={"colour": question})(seen(visual, visual, ["red", "blue", "red"]))
    assert [row["colour"] for row in found["zero-shot classes"]] == [True, True, False]
    renamed = Question(of="objects.0.colour", names={"red": "blue", "blue": "red"}, templates=["a {}"])
    found = ZeroShot(questions={"colour": renamed})(seen(visual, visual, ["red", "blue", "red"]))
    assert [row["colour"] for row in found["zero-shot classes"]][:2] == [False, False]


def test_a_template_without_a_place_and_a_fact_that_is_not_there_are_refused():
    with pytest.raises(UserError, match="prompts with {} in them"):
        ZeroShot(questions={"x": Question(of="a", names=["b"], templates=["a photo"])})
    visual = np.eye(3)
    with pytest.raises(UserError, match=r"sample i0.*no such fact"):
        ZeroShot(questions={"x": Question(of="objects.3.size", names=["red"], templates=["{}"])})(seen(visual, visual))


def test_a_probe_tells_what_a_line_can_and_nothing_of_noise():
    rng = np.random.default_rng(2)
    labels = np.array(["red", "blue", "green"])[rng.integers(0, 3, 240)]
    clear = rng.normal(size=(240, 6)) * 0.1
    clear[:, :3] += np.array([WORDS[c] for c in labels])
    probe = LinearProbe(of={"colour": "objects.0.colour"}, folds=4, ridge=0.1)
    told = [row["colour"] for row in probe(seen(clear, clear, list(labels)))["linear probe"]]
    noise = rng.normal(size=(240, 6))
    guessed = [row["colour"] for row in probe(seen(noise, noise, list(labels)))["linear probe"]]
    assert np.mean(told) > 0.99
    assert np.mean(guessed) < 0.5
    x, y = clear[:200], (labels[:200] == "red").astype(float)
    twice = fitted(np.concatenate([x, x]), np.concatenate([labels[:200]] * 2), clear[200:], 1e-6)
    assert (twice == fitted(x, labels[:200], clear[200:], 1e-6)).all(), y.mean()


def test_alignment_and_uniformity_of_known_points():
    corners = np.array([[1.0, 0.0], [-1.0, 0.0]])
    found = shape_of_space(seen(corners, corners))
    assert found["alignment"] == pytest.approx(0)
    assert found["uniformity of text"] == pytest.approx(-8)  # log exp(−2·|2|²)
    assert shape_of_space(seen(corners, -corners))["alignment"] == pytest.approx(4)
    assert shape_of_space(seen(np.ones((3, 2)), corners.repeat(2, 0)[:3]))["uniformity of text"] == pytest.approx(0)


def test_held_out_pairs_differ_in_what_their_captions_tell():
    items = pairs.heldout(count=64, seed=0, num_frames=4)
    told = {
        (i.fact("objects.0.colour"), i.fact("objects.0.shape"), i.fact("objects.0.motion"), i.fact("background"))
        for i in items
    }
    assert len(told) == len({item.caption for item in items}) == 64
    assert items[0].frames.shape == (4, 64, 64, 3)
    assert [i.name for i in pairs.heldout(count=8, seed=0, num_frames=4)] == [i.name for i in items[:8]]
    with pytest.raises(UserError, match="held-out scenes that differ"):
        pairs.heldout(count=10_000, seed=0, num_frames=1)


def test_pairs_of_shards_pass_over_captions_that_came_before(tmp_path: Path):
    shards = write_world(tmp_path / "world", split="train", count=6, seed=0)
    items, passed = pairs.asked(str(shards), count=4, seed=0, num_frames=2)
    assert (len(items), passed) == (4, 0)
    assert items[0].truth is not None
    with pytest.raises(UserError, match="nowhere"):
        pairs.asked(str(tmp_path / "nowhere"), count=4, seed=0, num_frames=2)


def test_the_table_holds_shares_in_both_directions_and_the_median_rank():
    rng = np.random.default_rng(3)
    text, visual = rng.normal(size=(2, 20, 4))
    arms = {"base": seen(text, visual), "adapted": seen(text, text)}
    _, rows = tabled(arms, [metric("retrieval", of_embeddings=True)], arms["base"].items, seed=0)
    assert [row["number"] for row in rows] == 2 * ["R@1", "R@5", "R@10", RANK]
    assert rows[0]["adapted"]["mean"] == 1.0
    assert rows[3]["adapted"]["mean"] == 1.0
    assert rows[0]["p_value"] < 0.01


def test_a_table_of_pairs_says_pairs_and_one_of_clips_says_prompts():
    text = np.random.default_rng(3).normal(size=(20, 4))
    arms = {"base": seen(text, -text), "adapted": seen(text, text)}
    _, rows = tabled(arms, [metric("retrieval", of_embeddings=True)], arms["base"].items, seed=0)
    shown = [aligned_page.results({"table": rows}), *(str(each.title) for each in table.for_terminal(rows))]
    assert all("20 pairs" in each and "prompts" not in each for each in shown)
    of_clips = page.results({"table": [{**row, "way": "sd"} for row in rows], "ways": ["sd"]})
    assert "20 prompts" in of_clips
    assert "pairs" not in of_clips
