"""Intervals and p-values against closed forms, full enumeration and simulated coverage."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest

from mmtrain.errors import UserError
from mmtrain.evaluate import intervals
from mmtrain.evaluate.intervals import Interval, bootstrap, paired, wilson


def random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = random(1), {0.95: 0, 0.8: 0}
    for trial in range(400):
        values = rng.random(80) < 0.6
        for level in hits:
            interval = bootstrap(values, seed=trial, draws=400, level=level)
            hits[level] += interval.low <= 0.6 <= interval.high
    for level, count in hits.items():
        error = 3 * sqrt(level * (1 - level) / 400)  # three standard errors of the simulation
        assert level - error - 0.02 <= count / 400 <= level + error + 0.02


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = random(2).normal(3.0, 2.0, 1000)
    half = 1.96 * values.std() / sqrt(1000)
    interval = bootstrap(values, seed=0, draws=8000)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    assert [interval.low, interval.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.01)
    assert interval.n == 1000


def test_bootstrap_of_two_values_is_known() -> None:
    """Means of two draws of {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    assert bootstrap(np.array([0, 1]), seed=3, level=0.95) == Interval(0.5, 0.0, 1.0, 2)
    assert bootstrap(np.array([0, 1]), seed=3, level=0.4) == Interval(0.5, 0.5, 0.5, 2)


def test_bootstrap_follows_shift_and_scale_and_its_seed() -> None:
    values = random(4).normal(size=50)
    one, other = bootstrap(values, seed=5), bootstrap(3 * values + 7, seed=5)
    assert [other.low, other.high] == pytest.approx([3 * one.low + 7, 3 * one.high + 7])
    assert bootstrap(values, seed=5) == one
    assert bootstrap(values, seed=6) != one
    assert bootstrap(values, seed=-5) != one


def test_bounded_memory_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapted = random(5).normal(size=(2, 30))
    whole, few = paired(base, adapted, seed=1, flips=1000), paired(base[:8], adapted[:8], seed=1)
    monkeypatch.setattr(intervals, "_AT_ONCE", 100)
    assert paired(base, adapted, seed=1, flips=1000) == whole
    assert paired(base[:8], adapted[:8], seed=1) == few


def test_wilson_at_the_ends_is_known() -> None:
    """All true: the low end is n / (n + z^2); none true is its mirror image."""
    squared = 1.959963985**2
    assert wilson(np.ones(10)).low == pytest.approx(10 / (10 + squared))
    assert wilson(np.ones(10)).high == pytest.approx(1.0)
    assert wilson(np.zeros(10)).high == pytest.approx(1 - 10 / (10 + squared))
    assert wilson(np.ones(100)).low == pytest.approx(0.963, abs=5e-4)  # the figure in its docstring


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97])
def test_wilson_covers_the_truth_exactly_summed(p: float) -> None:
    """The chance of each count of trues is known, so coverage is a sum, not a simulation."""
    n, covered = 60, 0.0
    for count in range(n + 1):
        interval = wilson(np.arange(n) < count)
        covered += (interval.low <= p <= interval.high) * comb(n, count) * p**count * (1 - p) ** (n - count)
    assert 0.92 <= covered <= 0.99


@pytest.mark.parametrize(
    ("difference", "p_value"),
    [([1, 2, 3], 2 / 8), ([1] * 10, 2 / 1024), ([0, 0, 0], 1.0), ([1, -1], 1.0), ([5], 1.0), ([3, 2, -1], 4 / 8)],
)
def test_small_p_values_are_known(difference: list[float], p_value: float) -> None:
    assert paired(np.zeros(len(difference)), np.array(difference), seed=0).p_value == p_value


def test_few_pairs_are_enumerated() -> None:
    for trial in range(20):
        base, adapted = random(6, trial).normal(size=(2, 7)).round(1)
        difference = adapted - base
        sums = [abs(float(np.dot(signs, difference))) for signs in product((-1, 1), repeat=7)]
        expected = np.mean([s >= abs(difference.sum()) - 1e-9 for s in sums])
        assert paired(base, adapted, seed=trial).p_value == pytest.approx(expected)


def test_many_pairs_agree_with_the_sign_test() -> None:
    """Differences of +1 and -1 only: the sign-flip test is the binomial test. 15 of 20 up gives p = 0.0414."""
    adapted = np.where(np.arange(20) < 15, 1.0, 0.0)
    exact = 2 * sum(comb(20, k) for k in range(15, 21)) / 2**20
    drawn = paired(1 - adapted, adapted, seed=1, flips=20_000)
    assert drawn.p_value == pytest.approx(exact, abs=0.006)
    assert drawn.difference.mean == 0.5
    assert paired(1 - adapted, adapted, seed=1, flips=2**20).p_value == pytest.approx(exact)


def test_p_values_are_uniform_when_nothing_differs() -> None:
    p_values = [paired(*random(7, t).normal(size=(2, 25)), seed=t, draws=10, flips=199).p_value for t in range(400)]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=3 * sqrt(level * (1 - level) / 400))


def test_a_real_difference_is_found_and_signed() -> None:
    base, noise = random(8).normal(size=(2, 200))
    better = paired(base, base + 0.3 + 0.1 * (noise - noise.mean()), seed=0)
    assert 0.28 < better.difference.low < better.difference.mean < better.difference.high < 0.32
    assert better.p_value == pytest.approx(1 / 10_001)
    worse = paired(base + 0.3, base, seed=0)
    assert worse.difference.mean == pytest.approx(-0.3)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")], [float("inf")]])
def test_what_is_no_sample_is_refused(values: list[float]) -> None:
    for call in (lambda v: bootstrap(v, seed=0), wilson, lambda v: paired(v, v, seed=0)):
        with pytest.raises(UserError):
            call(np.array(values))


def test_wrong_settings_are_refused() -> None:
    one = np.ones(3)
    with pytest.raises(UserError, match="level"):
        bootstrap(one, seed=0, level=95)
    with pytest.raises(UserError, match="draws"):
        bootstrap(one, seed=0, draws=0)
    with pytest.raises(UserError, match="same clips"):
        paired(one, np.ones(4), seed=0)
    with pytest.raises(UserError, match="flips"):
        paired(one, one, seed=0, flips=0)
    with pytest.raises(UserError, match="bootstrap"):
        wilson(np.array([0.5]))
