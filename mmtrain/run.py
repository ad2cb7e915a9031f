"""A run: the checked config and the folder it owns. Trains nothing, reads no data, knows no room of the house.

The constructor of ``Run`` is the schema of a config's root: ``conf/config.yaml`` names it as its ``_target_``.
"""

import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mmtrain.errors import UserError

PACKAGE = Path(__file__).resolve().parent
NOT_IDENTITY = frozenset(
    {
        "folder",
        "copies",
        "logger",
        "accelerator",
        "device",
        "devices",
        "num_nodes",
        "num_workers",
        "threads",
        "progress",
    }
)
"""Keys, at any depth, that change where and how a run is done but not what it computes."""
PACKAGES = (
    *("torch", "pytorch-lightning", "diffusers", "transformers", "peft", "webdataset", "hydra-core", "wandb"),
    *("av", "numpy", "pillow", "safetensors"),
)


@dataclass(kw_only=True)
class Run:
    """One training run. The keys are the config's root; every ``DictConfig`` is a node with a ``_target_``.

    Attributes:
        name: a word for the run's folder.
        seed: of every draw.
        dataset: the source of training batches; ``heldout`` is one that training never sees.
        cache: a folder of encoder outputs, or null to encode as training goes.
        adapters: what trains, by name.
        preview: what is sampled while training, or null.
        folder: where run folders go.
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
    preview: DictConfig | None = None
    folder: Path = Path("runs")

    cfg: DictConfig = field(init=False, repr=False)
    path: Path = field(init=False)
    manifest: dict[str, Any] = field(init=False, repr=False)

    @classmethod
    def start(cls, cfg: DictConfig, folder: Path | str, *, data: str, bases: dict[str, Any]) -> "Run":
        """Make the run's folder ``<folder>/<time>-<name>-<id8>`` and write its manifest.

        Args:
            cfg: the checked config.
            folder: where run folders go.
            data: the data's fingerprint (``Source.fingerprint``).
            bases: the frozen weights that the run stands on, as each backbone's ``base`` gives them.
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
            "seed": cfg.seed,
            "config": config,
            "data": data,
            "bases": bases,
            "code": code_version(),
            "git": git_state(),
            "python": platform.python_version(),
            "packages": versions(),
            "hardware": hardware(),
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
        known = sorted(path.parent for path in Path(folder).glob("*/manifest.json"))
        if text == "latest" and known:
            return cls.open(known[-1])
        found = [path for path in known if path.name == text or path.name.rsplit("-", 1)[-1].startswith(text)]
        if text and len(found) == 1:
            return cls.open(found[0])
        names = [path.name for path in known]
        if len(found) > 1:
            came = f"{len(found)} runs: {', '.join(p.name for p in found)}"
            raise UserError(text, came, "one run", "give the folder's whole name")
        words = [*names, *(n.rsplit("-", 1)[-1] for n in names), *(["latest"] if names else [])]
        close = difflib.get_close_matches(text, words, n=1)
        have = f"one of {', '.join(names[-8:])}" if names else f"a run, and {folder} holds none yet"
        fix = f"perhaps you meant {close[0]}" if close else "give a folder, the first characters of an id, or `latest`"
        raise UserError(text, "no such run", have, fix)

    @classmethod
    def _of(cls, cfg: DictConfig) -> "Run":
        run = cls(**{str(key): cfg[key] for key in cfg if key != "_target_"})
        run.cfg = cfg
        return run

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])

    def update_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest and write it in one piece: a reader sees the old one or the new one."""
        self.manifest.update(facts)
        write_json(self.path / "manifest.json", self.manifest)

    def differences(self, cfg: DictConfig) -> list[str]:
        """The identity's keys on which another config disagrees with this run, as ``key: ours, theirs``."""
        ours, theirs = (_flat(_identity_part(c)) for c in (self.manifest["config"], resolved(cfg)))
        keys = sorted(ours.keys() | theirs.keys())
        return [f"{k}: {ours.get(k)!r}, {theirs.get(k)!r}" for k in keys if ours.get(k) != theirs.get(k)]


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


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {where: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{where}.{key}" if where else key).items()}


def code_version() -> str:
    """BLAKE2b over the names and bytes of mmtrain's own source files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_state() -> dict[str, Any] | None:
    """The checkout's commit and whether tracked files differ from it; None outside a checkout of mmtrain itself."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


def versions() -> dict[str, str]:
    """The installed versions of what a run's numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine in words: processor, cores, threads in use, graphics cards."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
