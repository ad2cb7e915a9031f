"""Files that are whole or not there: written under another name, flushed to the disk, given their name by a rename."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    write_synced(partial, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
    partial.replace(path)


def write_synced(path: Path, payload: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
