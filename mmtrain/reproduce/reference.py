"""What is to be repeated: the record that a run left, in its folder or in what was exported of it."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.errors import UserError
from mmtrain.run import Run, flat, shipped_backbones

RECORD = "run"
"""The folder of an export in which the record of its run lies."""


@dataclass(frozen=True)
class Record:
    """What a run computed, and on what.

    Attributes:
        folder: where the record lies.
        manifest: of the run, as it was at its beginning.
        metrics: by step, each logged number as it was written.
        digests: by step, SHA-256 of what trains.
        steps: how far the record goes, up to where the run was changed.
    """

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[int, dict[str, str]]
    digests: dict[int, str]
    steps: int

    @classmethod
    def of(cls, folder: Path) -> "Record":
        """The record in a run's folder.

        Raises:
            UserError: nothing was logged there, or it cannot be read.
        """
        run = Run.open(folder)
        manifest = _as_it_began(run.manifest)
        metrics = {step: row for step, row in _table(folder / "metrics.csv").items() if step <= _unchanged(run)}
        if not metrics:
            raise UserError(str(folder), "no step in its metrics.csv", "a run that trained", "name another")
        steps = max(metrics)
        digests = {step: row["weights"] for step, row in _table(folder / "digests.csv").items() if step <= steps}
        return cls(folder, manifest, metrics, digests | _saved(folder, steps), steps)


def find(text: str, runs: str = "runs") -> Record:
    """The record of a run (its folder, its id, ``latest``) or of an exported folder."""
    exported = Path(text) / RECORD
    return Record.of(exported) if (exported / "manifest.json").is_file() else Record.of(Run.find(text, runs).path)


def _unchanged(run: Run) -> float:
    """The last step before a resume changed the run's identity."""
    return min((change["step"] for change in run.manifest.get("changes", [])), default=float("inf"))


def _as_it_began(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest without the changes of later resumes, with this machine's place of what travels with mmtrain."""
    config = dict(manifest["config"])
    was: dict[str, Any] = {}
    for change in reversed(manifest.get("changes", [])):
        was |= change["was"]
    for key in was.keys() & flat(config).keys():
        _set(config, key.split("."), was[key])
    code = {"code": was["code"]} if "code" in was else {}
    moved = _moved(config, manifest["shipped"], str(shipped_backbones()))
    return {**manifest, "config": moved, **code}


def _set(node: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        node[part] = node = dict(node[part])
    node[path[-1]] = value


def _moved(value: Any, then: str, now: str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, then, now) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, then, now) for item in value]
    return now + value.removeprefix(then) if isinstance(value, str) and value.startswith(then) else value


def _table(file: Path) -> dict[int, dict[str, str]]:
    """Rows of a table by their step, as they were written."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as opened:
        return {int(row.pop("step")): row for row in csv.DictReader(opened)}


def _saved(folder: Path, steps: int) -> dict[int, str]:
    """Digests of the checkpoints that are still there, from their manifests."""
    found = {}
    for file in (folder / "checkpoints").glob("step-*/manifest.json"):
        step = int(file.parent.name.removeprefix("step-"))
        if step <= steps:
            held = json.loads(file.read_text(encoding="utf-8"))["files"]
            found[step] = held["weights.safetensors"]["sha256"]
    return found
