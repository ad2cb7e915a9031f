"""What an evaluation left: reading its ``evaluation.json``. Light, so that a report needs no model."""

import json
from pathlib import Path
from typing import Any

from mmtrain.errors import UserError

VERSION = 1


def read(folder: Path) -> dict[str, Any]:
    """What an evaluation's folder holds.

    Raises:
        UserError: no evaluation there, or one that cannot be read.
    """
    file = folder / "evaluation.json"
    if not file.is_file():
        raise UserError(str(folder), "no evaluation.json", "a folder that `mmtrain evaluate` wrote", "evaluate first")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version = found["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(file), f"unreadable ({error!r})", "an evaluation", "evaluate again") from error
    if version != VERSION:
        raise UserError(str(file), f"version {version}", f"version {VERSION}", "evaluate again")
    return dict(found)
