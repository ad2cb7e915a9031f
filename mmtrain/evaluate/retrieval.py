"""Retrieval in both directions: which of all candidates is nearest. R@k, and the median rank.

Ties count against: a rank is the number of candidates that are at least as similar as the right one, itself included.
So embeddings that are all equal find nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Numbers
from mmtrain.evaluate.embedded import Embedded, EmbeddingMetric
from mmtrain.evaluate.intervals import of_draws, paired
from mmtrain.evaluate.table import PAIRS, Row

DIRECTIONS = ("text → visual", "visual → text")
RANK = "median rank"
_DRAWS = 2000


class Retrieval(EmbeddingMetric):
    """Shares of queries whose right answer is among the first k, both ways.

    Args:
        at: k's.
    """

    def __init__(self, *, at: list[int]) -> None:
        if not at or min(at) < 1:
            raise UserError("metric retrieval, at", str(at), "numbers from 1 on", "use [1, 5, 10]")
        self.at = at

    def __call__(self, seen: Embedded) -> dict[str, list[Numbers]]:
        similarity = seen.text @ seen.visual.T
        found = zip(DIRECTIONS, (ranks(similarity), ranks(similarity.T)), strict=True)
        return {way: [{f"R@{k}": bool(rank <= k) for k in self.at} for rank in each] for way, each in found}

    def rows(self, seen: Mapping[str, Embedded], *, seed: int) -> list[Row]:
        """The median rank each way."""
        rows = []
        for way, turned in zip(DIRECTIONS, (False, True), strict=True):
            before, after = (ranks((e.visual @ e.text.T) if turned else (e.text @ e.visual.T)) for e in seen.values())
            rows.append(median_row(PAIRS, way, before, after, seed))
        return rows


def ranks(similarity: np.ndarray) -> np.ndarray:
    """Rank of the diagonal in each row of ``[n n]``, 1 the best; a tie counts against it."""
    return (similarity >= np.diagonal(similarity)[:, None]).sum(1)


def median_row(way: str, group: str, base: np.ndarray, adapted: np.ndarray, seed: int) -> dict[str, Any]:
    """The median rank as a row of a table: percentile bootstrap over queries, the same draws for both; p of the
    sign-flip test on the ranks themselves."""
    before, after = np.asarray(base, np.float64), np.asarray(adapted, np.float64)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0)])))
    drawn = rng.integers(0, len(before), (_DRAWS, len(before)))
    old, new = (np.median(side[drawn], axis=1) for side in (before, after))
    return {
        "way": way,
        "group": group,
        "number": RANK,
        "share": False,
        "better": "lower",
        "base": asdict(of_draws(float(np.median(before)), old, n=len(before))),
        "adapted": asdict(of_draws(float(np.median(after)), new, n=len(after))),
        "difference": asdict(of_draws(float(np.median(after) - np.median(before)), new - old, n=len(after))),
        "p_value": paired(before, after, seed=seed).p_value,
    }
