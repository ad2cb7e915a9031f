"""Counts of kinds against a target: shares with intervals, how far they are from the target, and whether by chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmtrain.errors import UserError
from mmtrain.evaluate.intervals import wilson

DRAWS = 10_000


def distribution(seen: Sequence[str | None], target: Mapping[str, float], *, seed: int) -> dict[str, Any]:
    """What was seen, against the shares that were wanted.

    Args:
        seen: a name of each sample; None for one in which nothing could be read, which is counted apart.
        target: shares by name, which sum to 1; what is seen has one of these names.
        seed: of the test's draws.

    Returns:
        ``n`` and ``unread``; ``kinds``, each with name, count, share, Wilson's 95 % interval and target; ``distance``,
        the total variation distance ½ Σ |share - target|, from 0 to 1; ``max_skew``, the largest |ln(share / target)|
        of kinds that the target wants (Geyik et al. 2019), None where one of those was never seen; ``p_value``, of
        Pearson's statistic by Monte Carlo, None where nothing was read.
    """
    _check(target)
    read = [name for name in seen if name is not None]
    strange = sorted(set(read) - set(target))
    if strange:
        raise UserError("audit", f"saw {', '.join(strange)}", f"of {', '.join(target)}", "give all kinds a target")
    names = list(target)
    counts = np.array([read.count(name) for name in names])
    wanted = np.array([target[name] for name in names], np.float64)
    n = len(read)
    found: dict[str, Any] = {"n": n, "unread": len(seen) - n, "kinds": []}
    for name, count, share in zip(names, counts, wanted, strict=True):
        ends = wilson(np.arange(n) < count) if n else None
        told = (ends.mean, ends.low, ends.high) if ends is not None else (None,) * 3
        facts = dict(zip(("share", "low", "high"), told, strict=True))
        found["kinds"].append({"name": name, "count": int(count), **facts, "target": float(share)})
    if not n:
        return {**found, "distance": None, "max_skew": None, "p_value": None}
    shares = counts / n
    asked = wanted > 0
    skew = float(np.abs(np.log(shares[asked] / wanted[asked])).max()) if (shares[asked] > 0).all() else None
    distance = float(np.abs(shares - wanted).sum() / 2)
    return {**found, "distance": distance, "max_skew": skew, "p_value": chance(counts, wanted, seed=seed)}


def chance(counts: np.ndarray, target: np.ndarray, *, seed: int) -> float:
    """The share of samples of the same size, drawn from the target ``[k]``, whose Pearson statistic Σ (c - e)² / e is
    at least that of ``counts [k]``, the observed one counted among them. A kind that the target excludes makes it
    1 / (1 + draws). Right for small counts too, where the χ² table is not.
    """
    asked = target > 0
    if counts[~asked].any():
        return 1 / (1 + DRAWS)
    expected = counts.sum() * target[asked]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0)])))
    drawn = rng.multinomial(counts.sum(), target[asked] / target[asked].sum(), size=DRAWS)
    statistic = ((drawn - expected) ** 2 / expected).sum(1)
    own = ((counts[asked] - expected) ** 2 / expected).sum()
    return float((1 + np.count_nonzero(statistic >= own * (1 - 1e-12))) / (1 + DRAWS))


def _check(target: Mapping[str, float]) -> None:
    if len(target) < 2 or any(share < 0 for share in target.values()) or abs(sum(target.values()) - 1) > 1e-6:
        came = ", ".join(f"{name} {share:g}" for name, share in target.items()) or "nothing"
        raise UserError("audit, target", came, "two or more shares that sum to 1", "correct it, or write `uniform`")
