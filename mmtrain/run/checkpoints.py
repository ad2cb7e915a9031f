"""A run's checkpoints on the disk: which are whole, which is the newest, which the best. Writes none; knows no model.

A checkpoint is a folder ``step-00000042`` whose ``manifest.json`` was written last and names every other file with its
size and SHA-256. So whatever happened while it was written or since, a torn one is found out.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmtrain.errors import UserError

MANIFEST, BEST = "manifest.json", "best.json"
Say = Callable[[str], None]


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def manifest_of(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of each file in a checkpoint that is being written."""
    files = {file.name: file for file in sorted(folder.iterdir())}
    return {"files": {name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for name, f in files.items()}}


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole; None if it is. Reads all of it."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is unreadable ({error})"
    for name, facts in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} of {facts['bytes']} bytes"
        if sha256(file) != facts["sha256"]:
            return f"{name} holds other bytes than were written"
    return None


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def newest(folder: Path, say: Say = _on_stderr) -> Path:
    """The newest whole checkpoint; each torn one that is newer is named and passed over.

    Raises:
        UserError: there is none.
    """
    torn = []
    for path in reversed(listed(folder)):
        why = fault(path)
        if why is None:
            return path
        torn.append(f"{path.name}: {why}")
        say(f"passed over {path}: {why}")
    came = f"no whole checkpoint ({'; '.join(torn)})" if torn else "no checkpoint"
    raise UserError(str(folder), came, "a run that has saved one", "train it again" if torn else "train it first")


def best(folder: Path) -> Path | None:
    """The checkpoint whose watched number was the lowest; None where a run watched none."""
    file = folder / BEST
    return folder / json.loads(file.read_text(encoding="utf-8"))["checkpoint"] if file.is_file() else None
