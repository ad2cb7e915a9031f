"""Doing a run again from its record, and the verdict on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmtrain import config
from mmtrain.data.remote import is_remote
from mmtrain.errors import UserError
from mmtrain.reproduce import circumstances
from mmtrain.reproduce.compare import Comparison, compare, said
from mmtrain.reproduce.reference import Record
from mmtrain.run import Run, write_json
from mmtrain.train.fit import fit
from mmtrain.train.resume import Ask

TOLERANCE = 1e-4
"""Relative difference of a loss within which two runs count as equal, where nobody says another: float32 on other
processors differs by 1e-6 in the first steps, and training spreads that."""


def reproduce(
    record: Record, *, steps: int | None, overrides: Sequence[str], tolerance: float, out: Path
) -> tuple[Comparison, list[str]]:
    """Run a record again and compare.

    Args:
        steps: how many from the beginning, or None for all that the record has.
        overrides: ``key=value``, for what lies elsewhere now.
        tolerance: relative difference of a loss that still counts as equal.
        out: where the new run's folder goes.

    Returns:
        The comparison, and it and what differs in words.

    Raises:
        UserError: data or weights are not there, or are others.
    """
    done = min(steps or record.steps, record.steps)
    cfg = _config(record, overrides, out)
    wanted = {"data": record.manifest["data"], "bases": record.manifest["bases"]}
    again = Record.of(fit(cfg, Ask(until=done, wanted=wanted, facts={"reproduces": record.manifest["run_id"]})))
    found = compare(record.metrics, again.metrics, record.digests, again.digests, steps=done, tolerance=tolerance)
    different = circumstances.between(record.manifest, Run.open(again.folder).manifest)
    lines = [*said(found), *_differing(found, different)]
    write_json(again.folder / "reproduction.json", {**found.facts(), "of": str(record.folder), "differs": different})
    return found, [*lines, f"the new run: {again.folder}"]


def _differing(found: Comparison, different: Sequence[str]) -> list[str]:
    if not different:
        same = "nothing differs in code, packages, hardware, data and config"
        return [same if found.verdict == "bitwise equal" else f"{same}: look at what is not deterministic"]
    opening = "although these differ:" if found.verdict == "bitwise equal" else "what differs:"
    return [opening, *(f"  {line}" for line in different)]


def _config(record: Record, overrides: Sequence[str], out: Path) -> DictConfig:
    """The record's config, with threads as they were, what it was told, and nothing that only watches."""
    manifest = record.manifest
    watching: dict[str, Any] = {"folder": str(out), "logger": {}, "preview": None, "heldout": None, "tags": []}
    cfg = OmegaConf.create({**manifest["config"], **watching})
    cfg.trainer.threads = manifest["threads"]
    cfg.trainer.best = cfg.trainer.patience = None
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(word, "no value", "key=value", "write what lies where")
        OmegaConf.update(cfg, key, value)
    _here(cfg, record)
    return config.checked(cfg)


def _here(cfg: DictConfig, record: Record) -> None:
    """Data is looked for before anything is loaded; a dataset that is made of others finds its own."""
    for key in ("shards", "folder"):
        place = cfg.dataset.get(key) if key == "shards" or "shards" not in cfg.dataset else None
        if isinstance(place, str) and not is_remote(place) and "{" not in place and not Path(place).exists():
            wanted = f"the data with fingerprint {record.manifest['data'][:16]}"
            raise UserError(f"dataset.{key}", f"{place} is not here", wanted, f"say where: dataset.{key}=<place>")
