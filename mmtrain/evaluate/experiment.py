"""Several runs side by side: which belong together, the keys in which they differ, and their numbers with intervals.

Runs that differ in nothing but the seed are one group; a number is the mean of a logged column over the last tenth of a
run's steps. Groups are compared with the first one, paired by seed. What it looks like is `compared.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.errors import UserError
from mmtrain.evaluate import curves
from mmtrain.evaluate.intervals import Comparison, Interval, paired, student
from mmtrain.run import Run, flat

WHERE = frozenset({"seed", "folder", "logger", "tags", "preview", "name"})
"""Keys at a config's root by which no group differs from another."""
TENTH = 10


@dataclass(frozen=True)
class Group:
    """Runs of one config with different seeds.

    Attributes:
        label: the values of the keys in which groups differ.
        keys: those keys and values.
        runs: by seed.
        drawn: by seed, each logged column.
    """

    label: str
    keys: dict[str, Any]
    runs: dict[int, Run]
    drawn: dict[int, dict[str, curves.Curve]]

    def values(self, name: str) -> dict[int, float]:
        """By seed, one number; without the runs that did not log it."""
        return {seed: _end(drawn[name]) for seed, drawn in self.drawn.items() if name in drawn}

    def mean_curve(self, name: str) -> curves.Curve | None:
        """The mean over seeds at the steps that all of them have."""
        drawn = [one[name] for one in self.drawn.values() if name in one]
        if not drawn:
            return None
        steps = drawn[0][0]
        for other, _ in drawn[1:]:
            steps = np.intersect1d(steps, other)
        picked = [values[np.searchsorted(own, steps)] for own, values in drawn]
        return (steps, np.mean(picked, axis=0)) if len(steps) else None


@dataclass(frozen=True)
class Row:
    """One number of one group, and how it stands to the first group's where seeds are shared."""

    group: Group
    number: str
    interval: Interval
    against: Comparison | None


def groups(runs: Sequence[Run]) -> list[Group]:
    """Runs by what they compute, in the order in which they were named.

    Raises:
        UserError: two runs of one group with one seed, or a run that logged nothing.
    """
    found: dict[str, dict[int, Run]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = {key: value for key, value in run.manifest["config"].items() if key not in WHERE}
        key = repr(sorted(flat(config).items(), key=lambda item: item[0])) + str(run.manifest["data"])
        mine = found.setdefault(key, {})
        seed = int(run.manifest["seed"])
        if seed in mine:
            came = f"{mine[seed].path.name} and {run.path.name} are the same experiment with seed {seed}"
            raise UserError("report", came, "one run of each", "name one of them")
        mine[seed] = run
        configs[key] = {**flat(config), "data": run.manifest["data"][:12], "recipe": run.manifest["name"]}
    differing = differing_keys(list(configs.values()))
    return [_group(runs_of, {k: configs[key].get(k) for k in differing}) for key, runs_of in found.items()]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have one value in all configs."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def _group(runs: dict[int, Run], keys: dict[str, Any]) -> Group:
    label = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in keys.items())
    ordered = {seed: runs[seed] for seed in sorted(runs)}
    drawn = {seed: _curves(run.path) for seed, run in ordered.items()}
    return Group(label or next(iter(ordered.values())).manifest["name"], keys, ordered, drawn)


def _curves(folder: Path) -> dict[str, curves.Curve]:
    file, heldout = folder / "metrics.csv", folder / "heldout.csv"
    if not file.is_file():
        raise UserError(str(folder), "no metrics.csv", "a run that logged something", "leave it out")
    drawn = curves.read(file)
    if heldout.is_file():
        drawn["heldout"] = curves.read(heldout)["loss"]
    return drawn


def _end(curve: curves.Curve) -> float:
    """Mean of the last tenth, of at least one value."""
    return float(np.mean(curve[1][-max(1, len(curve[1]) // TENTH) :]))


def rows(found: Sequence[Group]) -> list[Row]:
    """Every number of every group, number by number."""
    names = dict.fromkeys(name for group in found for drawn in group.drawn.values() for name in drawn)
    return [_row(group, name, found[0]) for name in names for group in found if group.values(name)]


def _row(group: Group, name: str, first: Group) -> Row:
    mine, theirs = group.values(name), first.values(name)
    shared = sorted(mine.keys() & theirs.keys())
    against = None
    if group is not first and len(shared) > 1:
        sides = (np.array([values[seed] for seed in shared]) for values in (theirs, mine))
        against = paired(*sides, seed=0)
    return Row(group, name, student(np.array(list(mine.values()))), against)
