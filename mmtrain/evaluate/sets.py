"""Numbers of a whole set of clips, not of one: what a metric of sets sees of each clip is kept, and base and adapted
are compared by resampling and by exchanging prompts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmtrain.evaluate.cases import Case, OfSet
from mmtrain.evaluate.table import ARMS, Row

DRAWS = 200
"""Resampled sets, and exchanges: a number of a set costs more than a mean does."""
LEAST = 4  # clips of a group below which nothing is said of their set


class Sets:
    """Collects features of clips by metric, way and group.

    Args:
        metrics: by name; those that are not of sets are passed over.
    """

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = {name: metric for name, metric in metrics.items() if isinstance(metric, OfSet)}
        self._kept: dict[tuple[str, str, str], dict[str, list[tuple[str, np.ndarray]]]] = {}

    def see(self, arm: str, way: str, case: Case, frames: np.ndarray) -> None:
        """Keep what each metric sees of a clip uint8 ``[t h w c]``."""
        for name, metric in self.metrics.items():
            place = self._kept.setdefault((name, way, case.group), {arm: [] for arm in ARMS})
            place[arm].append((case.owner or case.name, metric.features(frames)))

    def rows(self, seed: int) -> list[Row]:
        """One for each way, group and number, as `table.aggregate` gives them.

        The interval is a percentile bootstrap over prompts: of a distance between sets it lies high, since a set drawn
        with repetition looks less diverse. p is of exchanging base and adapted of single prompts at random.
        """
        found = []
        for (name, way, group), kept in self._kept.items():
            if len(kept[ARMS[0]]) < LEAST:
                continue
            owners = np.array([prompt for prompt, _ in kept[ARMS[0]]])
            features = np.stack([[f for _, f in kept[arm]] for arm in ARMS])
            found += _rows(self.metrics[name], features, owners, {"way": way, "group": group}, seed)
        return found


def _rows(metric: OfSet, features: np.ndarray, owners: np.ndarray, place: Mapping[str, str], seed: int) -> list[Row]:
    """Rows of features ``[2 n d]``, base and adapted."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0), 7])))
    names = np.unique(owners)
    members = [np.flatnonzero(owners == name) for name in names]
    own = [metric.of_set(side, owners) for side in features]
    drawn: list[list[dict[str, float]]] = []
    swapped: list[list[dict[str, float]]] = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(names), size=len(names))
        picked = np.concatenate([members[i] for i in chosen])
        labels = np.concatenate([np.full(len(members[i]), str(k)) for k, i in enumerate(chosen)])
        drawn.append([metric.of_set(side[picked], labels) for side in features])
        flip = np.isin(owners, names[rng.random(len(names)) < 0.5])[:, None]
        exchanged = (np.where(flip, features[1], features[0]), np.where(flip, features[0], features[1]))
        swapped.append([metric.of_set(side, owners) for side in exchanged])
    lower = set(metric.lower_is_better)
    rows: list[Row] = []
    for number in own[0]:
        values = np.array([[side[number] for side in pair] for pair in drawn])
        change = own[1][number] - own[0][number]
        chance = np.array([pair[1][number] - pair[0][number] for pair in swapped])
        extreme = np.count_nonzero(np.abs(chance) >= abs(change) - 1e-12)
        sides = {arm: _interval(own[i][number], values[:, i], len(names)) for i, arm in enumerate(ARMS)}
        sides["difference"] = _interval(change, values[:, 1] - values[:, 0], len(names))
        facts = {"share": False, "better": "lower" if number in lower else "higher"}
        rows.append({**place, "number": number, **facts, **sides, "p_value": (1 + extreme) / (1 + DRAWS)})
    return rows


def _interval(value: float, draws: np.ndarray, n: int) -> dict[str, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"mean": float(value), "low": float(low), "high": float(high), "n": n}
