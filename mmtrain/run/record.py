"""A run: the checked config and the folder it owns. Trains nothing, reads no data, knows no room of the house.

The constructor of ``Run`` is the schema of a config's root: ``conf/config.yaml`` names it as its ``_target_``.
"""

import csv
import difflib
import fnmatch
import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmtrain.errors import UserError
from mmtrain.run.circumstances import PACKAGE, code_version, git_state, hardware, shipped_backbones, versions
from mmtrain.run.files import write_json

NOT_IDENTITY = frozenset(
    {
        *("folder", "copies", "max_copies_gb", "prefetch", "logger", "tags", "preview", "heldout", "progress"),
        *("accelerator", "device", "devices", "num_nodes", "strategy", "num_workers", "threads", "rank_timeout"),
        *("log_every", "checkpoint_every", "keep", "best", "patience", "gates", "sampling"),
    }
)
"""Keys, at any depth, that change where and how a run is done and what is kept of it, but not what it computes."""


@dataclass(kw_only=True)
class Run:
    """One training run. The keys are the config's root; every ``DictConfig`` is a node with a ``_target_``.

    Attributes:
        name: a word for the run's folder.
        seed: of every draw.
        dataset: the source of training batches; ``heldout`` is one that training never sees.
        cache: a folder of encoder outputs, or null to encode as training goes.
        adapters: what trains, by name.
        align: what is aligned before the first step, or null.
        preview: what is sampled while training, or null.
        folder: where run folders go.
        gates: thresholds that `mmtrain evaluate` holds the run's export to, as ``evaluate/gates.py`` reads them.
        sampling: how what it trains is to be sampled, for its export: ``num_inference_steps``, ``guidance_scale``;
            null leaves it to the base.
        tags: words by which `mmtrain report` finds runs that belong together.
        path: this run's own folder, once started or opened.
        manifest: what ``manifest.json`` holds.
    """

    name: str
    seed: int
    dataset: DictConfig
    backbone: DictConfig
    objective: DictConfig
    optim: DictConfig
    trainer: DictConfig
    adapters: dict[str, DictConfig]
    logger: dict[str, DictConfig]
    heldout: DictConfig | None = None
    cache: Path | None = None
    align: DictConfig | None = None
    preview: DictConfig | None = None
    folder: Path = Path("runs")
    tags: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    sampling: dict[str, float | None] = field(default_factory=dict)

    cfg: DictConfig = field(init=False, repr=False)
    path: Path = field(init=False)
    manifest: dict[str, Any] = field(init=False, repr=False)

    @classmethod
    def start(
        cls,
        cfg: DictConfig,
        folder: Path | str,
        *,
        data: str,
        bases: dict[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make the run's folder ``<folder>/<time>-<name>-<id8>`` and write its manifest.

        Args:
            cfg: the checked config.
            folder: where run folders go.
            data: the data's fingerprint (``Source.fingerprint``).
            bases: the frozen weights that the run stands on, as each backbone's ``base`` gives them.
            facts: to be kept in the manifest besides.
        """
        config = resolved(cfg)
        run_id = identity(config, data)
        run = cls._of(cfg)
        word = re.sub(r"[^\w.-]+", "-", cfg.name).strip("-.") or "run"
        run.path = _new_folder(Path(folder), f"{datetime.now():%Y%m%d-%H%M%S}-{word}-{run_id[:8]}")
        run.manifest = {
            "run_id": run_id,
            "name": cfg.name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "tags": list(run.tags),
            "seed": cfg.seed,
            "config": config,
            "shipped": str(shipped_backbones()),
            "data": data,
            "bases": bases,
            "code": code_version(),
            "git": git_state(),
            "python": platform.python_version(),
            "packages": versions(),
            "hardware": hardware(),
            **(facts or {}),
        }
        run.update_manifest()
        return run

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """The run that a folder holds.

        Raises:
            UserError: no manifest there, or one that cannot be read.
        """
        path = Path(folder)
        file = path / "manifest.json"
        if not file.is_file():
            raise UserError(str(path), "no manifest.json", "a run's folder", "name one under runs/, or `latest`")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            run = cls._of(OmegaConf.create(manifest["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(str(file), f"unreadable ({error})", "a run's manifest", "choose another run") from error
        run.path, run.manifest = path, manifest
        return run

    @classmethod
    def find(cls, text: str, folder: Path | str = "runs") -> "Run":
        """The run named by its folder, by the beginning of its id, or by the word ``latest``.

        Raises:
            UserError: no such run, or several of that name.
        """
        if (Path(text) / "manifest.json").is_file():
            return cls.open(text)
        known = _known(folder)
        if text == "latest" and known:
            return cls.open(known[-1])
        found = [path for path in known if path.name == text or _id_of(path).startswith(text)]
        if text and len(found) == 1:
            return cls.open(found[0])
        if len(found) > 1:
            came = f"{len(found)} runs: {', '.join(p.name for p in found)}"
            raise UserError(text, came, "one run", "give the folder's whole name")
        raise _no_run(text, known, folder)

    @classmethod
    def find_all(cls, words: Sequence[str], folder: Path | str = "runs") -> list["Run"]:
        """The runs that words name: each a folder, a pattern of folders or of their names, a tag, or what `find` takes.

        Raises:
            UserError: a word that names none.
        """
        known = {path: cls.open(path) for path in _known(folder)}
        found: dict[Path, Run] = {}
        for word in words:
            named = [run for path, run in known.items() if _is_named(run, path, word)]
            if not named and any(sign in word for sign in "*?["):
                named = [cls.open(path) for path in sorted(Path().glob(word)) if (path / "manifest.json").is_file()]
            for run in named or [cls.find(word, folder)]:
                found[run.path.resolve()] = run
        return list(found.values())

    @classmethod
    def same(cls, run_id: str, folder: Path | str) -> "Run | None":
        """The newest run of one identity, or None: what ``--resume auto`` goes on with."""
        runs = [cls.open(path) for path in _known(folder) if _id_of(path) == run_id[:8]]
        return next((run for run in reversed(runs) if run.run_id == run_id), None)

    @classmethod
    def _of(cls, cfg: DictConfig) -> "Run":
        run = cls(**{str(key): cfg[key] for key in cfg if key != "_target_"})
        run.cfg = cfg
        return run

    def leave_record(self, folder: Path) -> None:
        """Copy what it takes to run this again and to compare: manifest, logged numbers, digests of weights."""
        folder.mkdir()
        for name in ("manifest.json", "metrics.csv", "digests.csv"):
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, folder / name)

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])

    def update_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest and write it in one piece: a reader sees the old one or the new one."""
        self.manifest.update(facts)
        write_json(self.path / "manifest.json", self.manifest)

    def not_the_same(self, cfg: DictConfig, data: str, bases: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """By key, this run's value and another's, wherever the two identities differ: the config's keys, ``code``,
        ``data`` and ``bases``."""
        found = differences(self.manifest["config"], resolved(cfg))
        facts = {"code": code_version(), "data": data, "bases": {name: base["digest"] for name, base in bases.items()}}
        ours = dict(self.manifest, bases={name: base["digest"] for name, base in self.manifest["bases"].items()})
        return found | {key: (ours[key], value) for key, value in facts.items() if ours[key] != value}

    def go_on_as(self, cfg: DictConfig, changed: dict[str, tuple[Any, Any]], step: int, code: str) -> None:
        """Note that from a step on the run has another identity, as its user allowed; what it was stays readable."""
        was = {key: ours for key, (ours, _) in changed.items()}
        change = {"step": step, "at": datetime.now(UTC).isoformat(timespec="seconds"), "was": was}
        self.cfg = cfg
        self.update_manifest(config=resolved(cfg), code=code, changes=[*self.manifest.get("changes", []), change])


def _known(folder: Path | str) -> list[Path]:
    """The folders of runs in a folder, oldest first."""
    return sorted(path.parent for path in Path(folder).glob("*/manifest.json"))


def _id_of(path: Path) -> str:
    """The beginning of a run's id, as its folder's name has it."""
    return path.name.rsplit("-", 1)[-1].split(".")[0]


def _is_named(run: Run, path: Path, word: str) -> bool:
    return word in run.manifest.get("tags", []) or fnmatch.fnmatchcase(path.name, word)


def _no_run(text: str, known: Sequence[Path], folder: Path | str) -> UserError:
    names = [path.name for path in known]
    words = [*names, *(n.rsplit("-", 1)[-1] for n in names), *(["latest"] if names else [])]
    close = difflib.get_close_matches(text, words, n=1)
    have = f"one of {', '.join(names[-8:])}" if names else f"a run, and {folder} holds none yet"
    fix = f"perhaps you meant {close[0]}" if close else "give a folder, the first characters of an id, or `latest`"
    return UserError(text, "no such run", have, fix)


def ending_loss(folder: Path) -> float:
    """Mean training loss over the last tenth of a run's steps: what a sweep that searches makes small."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole config as plain values, every interpolation resolved."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def identity(config: dict[str, Any], data: str) -> str:
    """A run's id: BLAKE2b of the resolved config without ``NOT_IDENTITY``, the code's version and the data's print."""
    parts = {"config": _identity_part(config), "code": code_version(), "data": data}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _identity_part(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _identity_part(item) for key, item in value.items() if key not in NOT_IDENTITY}
    if isinstance(value, list):
        return [_identity_part(item) for item in value]
    if isinstance(value, str):  # what travels with mmtrain is the same wherever it is installed
        for shipped in (PACKAGE / "backbones", PACKAGE.parent / "data" / "backbones"):
            value = value.replace(str(shipped), "shipped:")
    return value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The identity's keys on which two configs disagree, with both values."""
    mine, other = flat(_identity_part(ours)), flat(_identity_part(theirs))
    keys = sorted(mine.keys() | other.keys())
    return {key: (mine.get(key), other.get(key)) for key in keys if mine.get(key) != other.get(key)}


def is_allowed(key: str, allowed: Collection[str]) -> bool:
    """Whether a key, or a node that it lies in, is among those that a user allowed to differ."""
    return any(key == each or key.startswith(f"{each}.") for each in allowed)


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys."""
    if not isinstance(value, dict) or not value:
        return {where: value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{where}.{key}" if where else key).items()}


def _new_folder(parent: Path, name: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("folder", f"{parent} ({error.strerror})", "a folder to write in", "set folder=") from error
    for attempt in range(1, 1000):
        path = parent / (name if attempt == 1 else f"{name}.{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError(f"a thousand runs of one name in one second: {name}")
