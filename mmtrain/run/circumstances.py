"""What a run's numbers depend on besides its config: the code, the packages, the machine. Measures; changes nothing."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "pytorch-lightning", "diffusers", "transformers", "tokenizers", "peft", "webdataset", "hydra-core"),
    *("omegaconf", "wandb", "av", "numpy", "pillow", "safetensors"),
)
DIFF_BYTES = 400_000  # of a checkout's changes that a manifest keeps


def shipped_backbones() -> Path:
    """Where what travels with mmtrain lies: in a wheel inside the package, in a checkout under ``data/``."""
    inside = PACKAGE / "backbones"
    return inside if inside.is_dir() else PACKAGE.parent / "data" / "backbones"


@cache
def code_version() -> str:
    """BLAKE2b over the names and bytes of mmtrain's own source files, as this process first found them."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_state() -> dict[str, Any] | None:
    """The checkout's commit, whether tracked files differ from it, and how; None outside a checkout of mmtrain."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        diff = _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff")
    except (OSError, subprocess.SubprocessError):
        return None
    cut = f"\n… {len(diff) - DIFF_BYTES} more characters\n" if len(diff) > DIFF_BYTES else ""
    return {"commit": commit, "dirty": bool(diff.strip()), "diff": diff[:DIFF_BYTES] + cut}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True, timeout=20)
    return done.stdout.decode(errors="replace")


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
    """The machine in words: processor and its instructions, cores, threads in use, graphics cards."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
    }
