"""How a model is sampled by whoever does not say: what ``sampling.json`` in its folder says, which an export wrote.

A model that was distilled for four steps without guidance makes noise in the usual twenty-five with it, so its folder
says so. The file is for people, too: it may be changed, and no checksum covers it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtrain.config.sampling import STEPS, fault
from mmtrain.errors import UserError

FILE = "sampling.json"


def read(folder: Path | str) -> dict[str, Any]:
    """What a folder says, or nothing: `num_inference_steps` and `guidance_scale`, either or both.

    Raises:
        UserError: a file that says something else.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return {}
    wanted = "what `mmtrain export` writes"
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(file), f"unreadable ({error})", wanted, "correct it, or remove it") from error
    if not isinstance(given, dict):
        raise UserError(str(file), f"a {type(given).__name__}", wanted, "correct it, or remove it")
    wrong = fault(given, str(file))
    if wrong is not None:
        raise wrong
    return whole(given)


def write(given: Mapping[str, Any], folder: Path) -> None:
    """Say it in an existing folder; where there is nothing to say, nothing is written."""
    said = whole(given)
    if said:
        (folder / FILE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def whole(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, steps as a whole number, which a config may hold as 8.0."""
    said = {name: value for name, value in given.items() if value is not None}
    return {name: int(value) if name == STEPS else float(value) for name, value in said.items()}


def of(backbone: Any) -> dict[str, Any]:
    """What holds for a backbone: the word of its artifact, and that of the folder it came from on what is left."""
    return read(backbone.path) | backbone.usual
