"""The numbers that a recipe is expected to give: ``<recipe>.expected.json`` beside it, measured, checked and written.

The file says what to run (overrides, steps, seeds, the data and how it is made) and holds what came of it, for each
seed, and from all seeds the interval in which another one's loss is expected. So it needs nothing but the recipe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain import config
from mmtrain.artifact import portable
from mmtrain.config.recipe import RECIPES
from mmtrain.data import world
from mmtrain.data.shards import write_world
from mmtrain.errors import UserError
from mmtrain.evaluate.intervals import Interval, next_value
from mmtrain.reproduce import circumstances
from mmtrain.reproduce.compare import Comparison, compare, said
from mmtrain.reproduce.reference import Record
from mmtrain.run import Run, write_json
from mmtrain.sample.mp4 import write_mp4, write_png
from mmtrain.train.fit import fit
from mmtrain.train.resume import Ask

LAST = 5  # steps at the end, or all of fewer, over which a loss is averaged for the interval
ELSEWHERE = ("dataset.shards", "dataset.folder", "cache", "seed")
"""Keys that say where and with which seed, not what is expected."""
KEPT = ("code", "python", "packages", "hardware", "threads", "data", "bases")


@dataclass(frozen=True)
class Outcome:
    """What came of one seed.

    Attributes:
        found: against the recorded losses of this seed, or None where there are none.
        loss: mean of the last steps.
        inside: whether it lies in the interval from the recorded seeds; None where there is no interval.
    """

    seed: int
    found: Comparison | None
    loss: float
    inside: bool | None

    @property
    def ok(self) -> bool:
        return bool(self.inside) or (self.found is not None and self.found.verdict != "different")


def is_recipe(text: str) -> bool:
    return text in config.recipes() or text.endswith(".yaml")


def file_of(recipe: str) -> Path:
    """The file of expected numbers beside a recipe."""
    return (Path(recipe) if recipe.endswith(".yaml") else RECIPES / f"{recipe}.yaml").with_suffix(".expected.json")


def read(recipe: str) -> dict[str, Any]:
    """What a recipe's file says.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    file = file_of(recipe)
    fix = 'write {"overrides": [], "steps": 20, "data": {"split": "train", "count": 24, "seed": 0}, "seeds": [0, 1, 2]}'
    if not file.is_file():
        raise UserError(str(file), "no such file", "what the recipe is expected to give", f"{fix}, then --record")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        _ = told["overrides"], told["steps"], told["data"], list(told["seeds"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(file), f"unreadable ({error})", "overrides, steps, data and seeds", fix) from error
    return told


def check(
    recipe: str, *, steps: int | None, seeds: Sequence[int] | None, tolerance: float, out: Path
) -> tuple[list[Outcome], list[str]]:
    """Run a recipe's short form and hold it against its file; the first recorded seed, if none is named.

    Returns:
        The outcome of each seed, and all of it in words.
    """
    told = read(recipe)
    if "measured" not in told:
        raise UserError(str(file_of(recipe)), "nothing measured yet", "losses to compare with", "run it with --record")
    done = min(steps or told["steps"], told["steps"])
    words, outcomes, lines = data_words(told["data"], out), [], []
    for seed in seeds or [int(next(iter(told["measured"])))]:
        record = run(recipe, told, words, seed, done, out)
        then = told["measured"].get(str(seed))
        found = None if then is None else _against(then, record, done, tolerance)
        loss = _last(record.metrics, done)
        whole = done == told["steps"] and "interval" in told
        inside = told["interval"]["low"] <= loss <= told["interval"]["high"] if whole else None
        outcomes.append(Outcome(seed, found, loss, inside))
        lines += _said(outcomes[-1], told, record)
    return outcomes, lines


def record(recipe: str, *, out: Path) -> Path:
    """Measure all seeds of a recipe's file and write what came into it."""
    told = read(recipe)
    words = data_words(told["data"], out)
    runs = {int(seed): run(recipe, told, words, int(seed), told["steps"], out) for seed in told["seeds"]}
    manifest = next(iter(runs.values())).manifest
    losses = [_last(record.metrics, told["steps"]) for record in runs.values()]
    told["measured"] = {
        str(seed): {
            "losses": [record.metrics[step]["loss"] for step in sorted(record.metrics)],
            "digests": {str(step): record.digests[step] for step in sorted(record.digests)},
        }
        for seed, record in runs.items()
    }
    if len(losses) > 2:
        told["interval"] = {
            "of": f"loss, mean of the last {min(LAST, told['steps'])} steps",
            **vars(_rounded(next_value(np.array(losses)))),
        }
    told["circumstances"] = portable({key: manifest[key] for key in KEPT} | {"config": _plain(manifest["config"])})
    file = file_of(recipe)
    write_json(file, told)
    return file


def run(recipe: str, told: Mapping[str, Any], words: Sequence[str], seed: int, steps: int, out: Path) -> Record:
    fixed = [f"seed={seed}", f"folder={out}", "logger=null", "trainer.threads=1"]
    cfg = config.compose(recipe, [*told["overrides"], *words, *fixed])
    if cfg.cache is not None:
        cfg.cache = str(out / "cache")
    cfg.preview = cfg.heldout = cfg.trainer.best = cfg.trainer.patience = None  # what only watches
    return Record.of(fit(config.checked(cfg), Ask(until=steps, facts={"expected of": recipe})))


def data_words(data: Mapping[str, Any], out: Path) -> list[str]:
    """The world's shards (a share of them ``broken``) or, for a recipe that packs a folder, files of it (``png`` of
    first frames, or ``mp4``); made where they are not yet."""
    split, count, seed, files = *(data[key] for key in ("split", "count", "seed")), data.get("files")
    share = data.get("broken")
    kind = [files] if files else [] if share is None else [f"broken {share:g}"]
    place = out / "data" / "-".join([split, str(count), str(seed), *kind])
    if files is None:
        if not place.exists():
            write_world(place, split=split, count=count, seed=seed, broken_share=share)
        return [f"dataset.shards={place}"]
    place.mkdir(parents=True, exist_ok=True)
    for key, frames, captions, _ in world.samples(seed, split, count, captions_each=1):
        if files == "png":
            write_png(frames[0], place / f"{key}.png")
        else:
            write_mp4(frames, place / f"{key}.mp4")
        (place / f"{key}.txt").write_text(captions[0])
    return [f"dataset.folder={place}", f"dataset.shards={out / 'data' / 'packed'}"]


def _against(then: Mapping[str, Any], record: Record, steps: int, tolerance: float) -> Comparison:
    ours = {step: {"loss": value} for step, value in enumerate(then["losses"], start=1)}
    theirs = {step: {"loss": row["loss"]} for step, row in record.metrics.items()}
    digests = {int(step): value for step, value in then["digests"].items()}
    return compare(ours, theirs, digests, record.digests, steps=steps, tolerance=tolerance)


def _last(metrics: Mapping[int, Mapping[str, str]], steps: int) -> float:
    return float(np.mean([float(metrics[step]["loss"]) for step in range(max(1, steps - LAST + 1), steps + 1)]))


def _rounded(interval: Interval) -> Interval:
    mean, low, high = (float(f"{value:.6g}") for value in (interval.mean, interval.low, interval.high))
    return Interval(mean, low, high, interval.n)


def _plain(manifest_config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what says where."""
    plain: dict[str, Any] = json.loads(json.dumps(manifest_config))
    for key in (*ELSEWHERE, "folder"):
        node, *rest = key.split(".")
        if rest and isinstance(plain[node], dict):
            plain[node].pop(rest[0], None)
        elif not rest:
            plain.pop(node, None)
    return plain


def _said(outcome: Outcome, told: Mapping[str, Any], record: Record) -> list[str]:
    lines = said(outcome.found) if outcome.found is not None else ["no losses of this seed are recorded"]
    if outcome.inside is not None:
        ends = f"[{told['interval']['low']:.4g}, {told['interval']['high']:.4g}]"
        where = "inside" if outcome.inside else "outside"
        lines.append(f"loss {outcome.loss:.4g}, {where} the interval of {told['interval']['n']} seeds {ends}")
    if outcome.found is None or outcome.found.verdict != "bitwise equal":
        now = Run.open(record.folder).manifest
        then = {**told["circumstances"], "git": None}
        different = circumstances.between(then, portable({**now, "git": None, "config": _plain(now["config"])}))
        lines += (
            ["what differs:", *(f"  {line}" for line in different)] if different else ["nothing is known to differ"]
        )
    return [f"seed {outcome.seed}: {lines[0]}", *(f"  {line}" for line in lines[1:])]
