"""Laws of what is measured of sets: the formulas against references in numpy, and rows that pair prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain.data.files import write_files
from mmtrain.data.pack import pack
from mmtrain.errors import UserError
from mmtrain.evaluate import distances, table
from mmtrain.evaluate.cases import OWN, Case, OfSet, seeded
from mmtrain.evaluate.run import metric
from mmtrain.evaluate.set_metrics import Distances, Diversity
from mmtrain.evaluate.sets import Sets
from mmtrain.evaluate.style import Style, colours, gram


def sets(n: int = 40, m: int = 30, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(n, d)) @ draw.normal(size=(d, d)), draw.normal(size=(m, d)) + 0.3


def test_frechet_is_the_published_formula():
    a, b = sets()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(first @ second).real).sum()  # of a product of two covariances: none is below 0
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * root
    assert distances.frechet(a, b) == pytest.approx(wanted, rel=1e-9)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert distances.frechet(a[:4], b[:3]) > 0, "fewer samples than features"


def test_kernel_and_cmmd_are_their_double_sums():
    a, b = sets(7, 5)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def g(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-((x - y) ** 2).sum() / 200))

    def apart(k, unbiased: bool) -> float:  # type: ignore[no-untyped-def]
        def within(s: np.ndarray) -> float:
            kept = [k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if not unbiased or i != j]
            return float(np.mean(kept))

        return within(a) + within(b) - 2 * float(np.mean([k(x, y) for x in a for y in b]))

    assert distances.kernel(a, b) == pytest.approx(apart(k, True), rel=1e-9)
    assert distances.cmmd(a, b) == pytest.approx(1000 * apart(g, False), rel=1e-9)


def test_the_unbiased_one_is_zero_on_average_where_there_is_no_difference():
    draw = np.random.default_rng(1)
    pairs = [(draw.normal(size=(8, 4)), draw.normal(size=(8, 4))) for _ in range(300)]
    values = np.array([distances.kernel(a, b) for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([distances.frechet(a, b) for a, b in pairs]) > 0.5, "which the Fréchet distance of few is not"


def test_diversity_is_between_the_seeds_of_a_prompt():
    one, other = np.eye(3)[0], np.eye(3)[1]
    same = np.stack([one, one, other, other])
    assert distances.diversity(same, np.array(["a", "a", "b", "b"])) == 0
    assert distances.diversity(same, np.array(["a", "b", "a", "b"])) == 1
    assert distances.diversity(same, np.array(["a", "b", "c", "d"])) == pytest.approx(4 / 6)


class Mean:
    """A metric of sets whose value is known: the mean of the features."""

    lower_is_better = ("mean",)

    def features(self, frames: np.ndarray) -> np.ndarray:
        return np.array([frames.mean()])

    def of_set(self, features: np.ndarray, owners: np.ndarray) -> dict[str, float]:
        return {"mean": float(features.mean())}


def test_rows_of_a_set_pair_prompts():
    assert isinstance(Mean(), OfSet)
    kept = Sets({"mean": Mean(), "other": lambda clip, case: {}})
    cases = seeded([Case(name=f"c{i}", group=OWN, prompt="p", seed=i) for i in range(12)], 2)
    assert len(cases) == 24
    assert (cases[1].owner, cases[1].name, cases[1].seed) == ("c0", "c0-1", 1)
    for i, case in enumerate(cases):
        for arm, more in (("base", 0), ("adapted", 20)):
            kept.see(arm, "none", case, np.full((1, 2, 2, 3), i + more, np.uint8))
    [row] = kept.rows(seed=0)
    assert row["difference"]["mean"] == row["difference"]["low"] == row["difference"]["high"] == 20.0
    assert row["base"]["mean"] == 11.5
    assert row["base"]["low"] < 11.5 < row["base"]["high"]
    assert row["p_value"] <= 2 / 201
    assert table.outcome(row) == "worse"
    assert row["base"]["n"] == 12
    still = Sets({"mean": Mean()})
    for case in cases:
        for arm in table.ARMS:
            still.see(arm, "none", case, np.full((1, 2, 2, 3), len(case.name), np.uint8))
    assert still.rows(seed=0)[0]["p_value"] == 1


def test_the_seeds_of_a_prompt_count_once():
    def clip(owner: str, base: bool, adapted: bool) -> dict[str, object]:
        arms = {"base": {"numbers": {"a": base}}, "adapted": {"numbers": {"a": adapted}}}
        return {"way": "none", "group": OWN, "owner": owner, **arms}

    clips = [clip(f"c{i}", False, j == 0) for i in range(6) for j in range(2)]
    [row] = table.aggregate(clips, seed=0)
    assert (row["base"]["n"], row["adapted"]["mean"], row["share"]) == (6, 0.5, True)
    assert row["adapted"]["low"] == row["adapted"]["high"] == 0.5


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_files(root / "kit", images=5, clips=0, split="train", seed=0, branded=True)
    pack(root / "kit", root / "shards")
    return root / "shards"


CASE = Case(name="c", group=OWN, prompt="p", seed=0)


def test_style_is_nearest_to_the_brands_own(own: Path, tiny_clip: Path):
    from mmtrain.data import brand, world

    style = Style(path=str(tiny_clip), reference=str(own))
    scenes = [world.scene(0, "train", i, 0.3) for i in range(5)]
    branded, plain = (
        [style(draw(scene), CASE) for scene in scenes]
        for draw in (lambda s: brand.render(s, brand.Brand(), 1), lambda s: world.render(s, 1))
    )
    for name in style.lower_is_better:
        assert np.mean([found[name] for found in branded]) < np.mean([found[name] for found in plain]), name
    assert all(-1 <= found["CLIP-I (clip)"] <= 1.0001 for found in branded)


def test_gram_and_colours_of_known_pictures():
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert np.abs(gram(flat)).max() < 1e-8, "filters without mean see nothing in one colour"
    lighter = flat + np.uint8(10)
    away = np.abs(colours(lighter) - colours(flat)).mean()
    assert 0 < away <= 10 * np.sqrt(3)
    assert np.array_equal(colours(flat), colours(flat[:8]))


def test_without_a_reference_it_is_asked_for():
    for name in ("style", "distances"):
        with pytest.raises(UserError, match="--reference"):
            metric(name)


def test_distances_and_diversity_of_pictures(own: Path, tiny_clip: Path):
    torch.manual_seed(0)
    far = Distances(path=str(tiny_clip), reference=str(own))
    assert np.abs(far.features(np.zeros((1, 64, 64, 3), np.uint8))[-24:]).max() == 0, "a picture does not change"
    values = far.of_set(far.own, np.arange(5))
    assert values["Fréchet (clip)"] == pytest.approx(0, abs=1e-9)
    noise = np.random.default_rng(0).integers(0, 256, (5, 1, 64, 64, 3), np.uint8)
    seen = np.stack([far.features(clip) for clip in noise])
    assert far.of_set(seen, np.arange(5))["CMMD (clip)"] > values["CMMD (clip)"]
    one = Diversity(path=str(tiny_clip))
    features = np.stack([one.features(noise[0])] * 3)
    assert one.of_set(features, np.array(["a"] * 3))["diversity (clip)"] == pytest.approx(0, abs=1e-6)
