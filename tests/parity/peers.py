"""open_clip's losses, where they are at hand: OPEN_CLIP names a folder that holds ``open_clip/``, or it is installed.

Only the file of its losses is read: the package as a whole needs torchvision.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def open_clip_losses() -> Any:
    """The module of open_clip's losses, or None."""
    installed = importlib.util.find_spec("open_clip")
    places = list(installed.submodule_search_locations or []) if installed else []
    if "OPEN_CLIP" in os.environ:
        places = [
            str(Path(os.environ["OPEN_CLIP"]) / "open_clip"),
            str(Path(os.environ["OPEN_CLIP"]) / "src/open_clip"),
        ]
    files = [Path(place) / "loss.py" for place in places if (Path(place) / "loss.py").is_file()]
    if not files:
        return None
    spec = importlib.util.spec_from_file_location("open_clip_losses", files[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
