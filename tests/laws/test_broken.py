"""Laws of clips that are broken on purpose, and of who detects them: what is broken shows, and areas are right."""

from pathlib import Path

import numpy as np
import pytest

from mmtrain import cli
from mmtrain.data import broken, world
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.evaluate import aligned_page, pairs
from mmtrain.evaluate.alignment import tabled, told_apart
from mmtrain.evaluate.detection import GROUP, Detection, won
from mmtrain.evaluate.embedded import Embedded, Item
from mmtrain.evaluate.judge import read
from mmtrain.evaluate.pairs import spread
from mmtrain.evaluate.run import metric

FRAME = np.zeros((1, 4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("broken") / "s", split="train", count=24, seed=3, broken_share=0.5)


def moving(count: int) -> list[world.Scene]:
    scenes = (world.scene(7, "train", i, 0.4) for i in range(10 * count))
    return [scene for scene in scenes if any(s.motion in world.DIRECTIONS for s in scene.sprites)][:count]


@pytest.mark.parametrize("fault", broken.FAULTS)
def test_a_fault_shows_in_every_other_frame_and_in_eight_that_are_spread(fault: str):
    for i, scene in enumerate(moving(10)):
        whole, spoilt = world.render(scene), broken.FAULTS[fault](scene, world.rng_of("fault", fault, i))
        assert (spoilt.shape, spoilt.dtype) == (whole.shape, whole.dtype)
        off = [
            np.abs(np.subtract(spoilt, other, dtype=np.int64)).sum((1, 2, 3)) > 1000 for other in (whole, whole[::-1])
        ]
        for seen in off:
            assert seen[::2].any()
            assert seen[1::2].any()
            assert spread(seen[:, None], 8).any()
        assert not all(seen.all() for seen in off), "and some of the scene is left"


def test_the_judge_sees_what_vanishes_and_what_jumps():
    for fault, what in (("vanished", "vanished"), ("jumped", "jumped")):
        alone = [scene for scene in moving(30) if len(scene.sprites) == 1][:10]
        found = [read(broken.FAULTS[fault](s, world.rng_of(fault, i))) for i, s in enumerate(alone)]
        assert len(found) == 10
        assert all(getattr(reading, what) for reading in found)
        assert not any(getattr(read(world.render(scene)), what) for scene in alone)


def test_a_frozen_clip_stands_still_and_catches_up():
    for i, scene in enumerate(moving(10)):
        frames = broken.frozen(scene, world.rng_of("frozen", i))
        same = (frames[1:] == frames[:-1]).all((1, 2, 3))
        assert same.sum() >= 5
        assert not same[0]
        assert not same[-1], "it goes on"


def test_captions_tell_whole_from_broken_and_facts_which_fault(shards: Path):
    source = Source(shards=str(shards))
    found = [source.sample(i) for i in range(len(source))]
    faults = [str((sample.truth or {})["fault"]) for sample in found]
    assert [s.captions for s in found] == [((broken.WHOLE if f == "none" else broken.BROKEN),) for f in faults]
    assert {"none"} < set(faults) <= {"none", *broken.FAULTS}
    for i, (sample, fault) in enumerate(zip(found, faults, strict=True)):
        apart = np.abs(sample.frames.astype(float) - world.render(world.scene(3, "train", i))).max((1, 2, 3))
        worn = np.abs(sample.frames.astype(float) - world.render(world.scene(3, "train", i))).mean()
        assert apart.min() > 0, "whole or broken, every frame is worn"
        assert worn < 4 or fault != "none"


def test_the_same_seed_gives_the_same_bytes(shards: Path, tmp_path: Path):
    again = write_world(tmp_path / "again", split="train", count=24, seed=3, broken_share=0.5)
    assert (again / "000000.tar").read_bytes() == (shards / "000000.tar").read_bytes()
    for share in (0.0, 1.0):
        told = {str(truth["fault"]) for *_, truth in broken.samples(3, "train", 8, 0.3, 1.0, share)}
        assert (told == {"none"}) is (share == 0.0)
        assert ("none" in told) is (share == 0.0)


@pytest.mark.parametrize("more", [["--brand"], ["--stills"], ["--files", "2,2"], ["--rename", "red=rouge"]])
def test_broken_clips_are_nothing_else_besides(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["shards", "world", str(tmp_path / "x"), "--count", "2", "--broken", "0.5", *more]) == 2
    assert "broken" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- who detects them ----

FAULTS = ["none", "jumped", "none", "melted", "jumped", "none"]
SCORES = np.array([-1.0, 0.5, 0.25, 0.25, -0.5, -2.0])


def seen(scores: np.ndarray, faults: list[str]) -> Embedded:
    """Items with these scores: sentences are unit vectors of which only the first has what a score is made of."""
    items = [Item(f"i{i}", "x", FRAME, {"fault": fault}) for i, fault in enumerate(faults)]
    visual = np.stack([scores, np.zeros(len(scores))], 1)
    words = {broken.BROKEN: [1.0, 0.0], broken.WHOLE: [0.0, 1.0]}
    return Embedded(items, visual, visual, lambda captions: np.array([words[c] for c in captions]))


def test_the_area_is_the_share_of_pairs_won_and_a_tie_is_half_of_one():
    broke = np.array([fault != "none" for fault in FAULTS])
    found = won(SCORES, broke, ~broke)
    assert found.shape == (3, 3)
    assert found.mean() == pytest.approx((3 + 2.5 + 2) / 9)
    steps = [(SCORES[broke] >= edge).mean() for edge in sorted(SCORES, reverse=True)]
    fakes = [(SCORES[~broke] >= edge).mean() for edge in sorted(SCORES, reverse=True)]
    assert found.mean() == pytest.approx(np.trapezoid([0, *steps], [0, *fakes])), "the area under the curve itself"


def test_the_table_holds_shares_and_areas_by_fault():
    arms = {"base": seen(-SCORES, FAULTS), "adapted": seen(SCORES, FAULTS)}
    _, rows = tabled(arms, [Detection(of="fault")], arms["base"].items, seed=0)
    told = {row["number"]: row["adapted"]["mean"] for row in rows if row["group"] == GROUP}
    assert told["right"] == pytest.approx(4 / 6)
    assert (told["right, whole"], told["right, jumped"], told["right, melted"]) == pytest.approx((2 / 3, 1 / 2, 1.0))
    assert told["AUC"] == pytest.approx(7.5 / 9)
    assert (told["AUC, jumped"], told["AUC, melted"]) == pytest.approx((5 / 6, 2.5 / 3))
    assert {row["number"]: row["base"]["mean"] for row in rows}["AUC"] == pytest.approx(1 - 7.5 / 9)


def test_the_intervals_of_an_area_hold_it_and_narrow_with_the_clips():
    rng = np.random.default_rng(0)
    widths = []
    for count in (40, 1000):
        faults = ["none", "melted"] * (count // 2)
        shift = np.array([0.0, 1.0] * (count // 2))
        arms = {"base": seen(rng.normal(size=count), faults), "adapted": seen(rng.normal(size=count) + shift, faults)}
        row = Detection(of="fault").rows(arms, seed=0)[0]
        assert row["adapted"]["low"] <= 0.760 <= row["adapted"]["high"], "Φ(1/√2), of normals one deviation apart"
        assert row["base"]["low"] <= 0.5 <= row["base"]["high"]
        widths.append(row["adapted"]["high"] - row["adapted"]["low"])
    assert widths[1] == pytest.approx(widths[0] / 5, rel=0.4)
    assert row["p_value"] < 0.01


@pytest.mark.parametrize(("fault", "came"), [("none", "whole"), ("melted", "broken")])
def test_clips_of_one_kind_have_no_area(fault: str, came: str):
    with pytest.raises(UserError, match=f"4 clips, all of them {came}"):
        Detection(of="fault").rows(
            {"base": seen(SCORES[:4], [fault] * 4), "adapted": seen(SCORES[:4], [fault] * 4)}, seed=0
        )


def test_captions_that_are_shared_are_kept_for_who_wants_them(shards: Path):
    asked, passed = pairs.asked(str(shards), count=20, seed=0, num_frames=8, distinct=False)
    assert (len(asked), passed, asked[0].frames.shape) == (20, 0, (8, 64, 64, 3))
    retrieval, detection = (metric(name, of_embeddings=True) for name in ("retrieval", "broken_world"))
    assert (told_apart([retrieval]), told_apart([detection])) == (True, False)
    with pytest.raises(UserError, match="one kind"):
        told_apart([retrieval, detection])
    arms = {"base": seen(SCORES, FAULTS), "adapted": seen(SCORES, FAULTS)}
    _, rows = tabled(arms, [detection], arms["base"].items, seed=0)
    space = {name: {"alignment": 1.0} for name in arms}
    evaluated = {"table": rows, "gates": [], "alignment": {"space": space}, "settings": {"pairs": 6}}
    page = "".join(aligned_page.parts(evaluated, Path()))
    assert "AUC" in page
    assert "Similarities" not in page, "of captions that many share a matrix says nothing"
