"""How sure a number is: intervals of a mean and of a paired difference, and the p-value of that difference.

Holds statistics on arrays of per-clip numbers; what the numbers measure is the other files' matter. Each value must
come from an independent unit: several clips of one prompt are averaged first, or the intervals are too narrow.
Every draw comes from the given seed, so that a report is reproduced to the digit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mmtrain.errors import UserError

_AT_ONCE = 1 << 20  # random numbers held at a time, 8 MiB


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values and the ends of its interval, in the values' own unit."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Mean of adapted - base with its interval, and the p-value of there being no difference (two-sided)."""

    difference: Interval
    p_value: float


def bootstrap(values: np.ndarray, *, seed: int, draws: int = 2000, level: float = 0.95) -> Interval:
    """Interval of the mean of values ``[n]`` (numbers or booleans): the middle ``level`` of resampled means.

    This is the percentile bootstrap. It assumes no distribution, and is too narrow for few values: by a factor of
    about sqrt(1 - 1/n), and of no width at all where all values are equal. For shares near 0 or 1 take `wilson`.
    """
    sample = _checked("bootstrap", values)
    _check_settings("bootstrap", draws, level)
    n = len(sample)
    means = [sample[(uniform * n).astype(np.intp)].mean(axis=1) for uniform in _uniforms("bootstrap", seed, draws, n)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high), n)


def of_draws(value: float, draws: np.ndarray, *, n: int, level: float = 0.95) -> Interval:
    """Interval of a number of ``n`` values that is no mean, from what it is in each of the draws ``[draws]``: the
    middle ``level`` of them."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), n)


def wilson(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Interval of a share of trues, values ``[n]`` of 0 or 1: the shares p that a normal test would not refuse.

    Solves ``|mean - p| = z sqrt(p (1 - p) / n)`` for p. Unlike the bootstrap's, it keeps a width at 0 and 1: none
    wrong of 100 is a share of 1 with a low end of 0.963.
    """
    sample = _checked("wilson", values)
    _check_settings("wilson", 1, level)
    if not np.isin(sample, (0.0, 1.0)).all():
        raise UserError(
            "wilson", "came other values than 0 and 1", "wanted booleans", "use bootstrap for other numbers"
        )
    n, mean, z = len(sample), float(sample.mean()), NormalDist().inv_cdf((1 + level) / 2)
    middle, half = mean + z * z / (2 * n), z * float(np.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2))
    scale = 1 + z * z / n
    return Interval(mean, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), n)


def student(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Interval of the mean of few values ``[n]`` from a normal distribution, such as one number of several seeds:
    mean ± t s / sqrt(n), where the bootstrap would be too narrow. One value has no interval: its ends are infinite."""
    sample = _checked("student", values)
    _check_settings("student", 1, level)
    return _around(sample, level, 1 / np.sqrt(len(sample)))


def next_value(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Interval in which one more value from the same normal distribution lies: mean ± t s sqrt(1 + 1/n)."""
    sample = _checked("next_value", values)
    _check_settings("next_value", 1, level)
    return _around(sample, level, np.sqrt(1 + 1 / len(sample)))


def _around(sample: np.ndarray, level: float, scale: float) -> Interval:
    mean, n = float(sample.mean()), len(sample)
    half = t_quantile((1 + level) / 2, n - 1) * float(sample.std(ddof=1)) * scale if n > 1 else np.inf
    return Interval(mean, float(mean - half), float(mean + half), n)


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t with ``df`` degrees of freedom, for p of at least one half; by bisection of its closed
    form (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    low, high = 0.0, 1.0
    while _t_inside(high, df) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, df) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _t_inside(t: float, df: int) -> float:
    """P(|T| <= t): a finite series in the cosine of θ = arctan(t / sqrt(df))."""
    theta = np.arctan(t / np.sqrt(df))
    sine, cosine = np.sin(theta), np.cos(theta)
    odd = df % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, df - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if not odd:
        return float(sine * total)
    return float(2 / np.pi * (theta + (sine * total if df > 1 else 0.0)))


def paired(
    base: np.ndarray,
    adapted: np.ndarray,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    flips: int = 10_000,
) -> Comparison:
    """Adapted against base on the same clips, both ``[n]`` in the same order.

    The interval is `bootstrap`'s on the differences. The p-value is of the sign-flip test: were there no difference,
    each pair could as well have come the other way round, so it is the share of sign patterns whose mean is at least
    as far from zero. All 2^n patterns are tried where they are no more than ``flips``: then the value is exact.
    Otherwise ``flips`` random ones are, and the observed pattern is counted as one of them, so that p is never 0.
    """
    if flips < 1:
        raise UserError("paired", f"came flips={flips}", "wanted at least 1", "leave flips at its default")
    before, after = _checked("paired base", base), _checked("paired adapted", adapted)
    if len(before) != len(after):
        came = f"came {len(before)} base and {len(after)} adapted values"
        raise UserError("paired", came, "wanted one of each per clip", "score both on the same clips, in one order")
    difference = after - before
    interval = bootstrap(difference, seed=seed, draws=draws, level=level)
    return Comparison(interval, _sign_flip(difference, seed, flips))


def _sign_flip(difference: np.ndarray, seed: int, flips: int) -> float:
    """Two-sided p-value of the sign-flip test on differences ``[n]``."""
    n = len(difference)
    size = np.abs(difference).sum()
    enough = abs(difference.sum()) - 1e-9 * size  # equal sums added in another order differ in their last digits
    exact = n < 63 and 2**n <= flips
    extreme = 0
    for signs in _all_signs(n) if exact else _drawn_signs(seed, flips, n):
        extreme += int(np.count_nonzero(np.abs(signs @ difference) >= enough))
    return extreme / 2**n if exact else (1 + extreme) / (1 + flips)


def _all_signs(n: int) -> Iterator[np.ndarray]:
    """Every pattern of -1 and +1, ``[2^n n]`` in slices of bounded memory."""
    rows = max(1, _AT_ONCE // n)
    for start in range(0, 2**n, rows):
        yield 1.0 - 2.0 * (np.arange(start, min(start + rows, 2**n))[:, None] >> np.arange(n) & 1)


def _drawn_signs(seed: int, flips: int, n: int) -> Iterator[np.ndarray]:
    """Random patterns of -1 and +1, ``[flips n]`` in slices."""
    for uniform in _uniforms("flips", seed, flips, n):
        yield np.where(uniform < 0.5, -1.0, 1.0)


def _uniforms(stream: str, seed: int, draws: int, n: int) -> Iterator[np.ndarray]:
    """Uniform numbers in [0, 1), ``[draws n]`` in slices of bounded memory; the slicing changes no number."""
    key = int.from_bytes(stream.encode()[:8], "little")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0), key])))
    rows = max(1, _AT_ONCE // n)
    for start in range(0, draws, rows):
        yield rng.random((min(rows, draws - start), n))


def _checked(where: str, values: np.ndarray) -> np.ndarray:
    """Values ``[n]`` as float64; refuses none at all, another layout, and what is not finite."""
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample):
        raise UserError(
            where, f"came shape {list(sample.shape)}", "wanted [n], n at least 1", "pass one number per clip"
        )
    bad = np.flatnonzero(~np.isfinite(sample))
    if len(bad):
        came = f"came {len(bad)} values that are not finite, the first at {bad[0]}"
        raise UserError(where, came, "wanted finite numbers", "find the clip that the metric failed on")
    return sample


def _check_settings(where: str, draws: int, level: float) -> None:
    if draws < 1 or not 0 < level < 1:
        came = f"came draws={draws}, level={level}"
        raise UserError(where, came, "wanted draws at least 1 and level between 0 and 1", "use 2000 and 0.95")
