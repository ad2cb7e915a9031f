"""A run: the checked config, and the folder that says what was run, on what, and how far it came.

`record.py` is the folder and its manifest, `checkpoints.py` which of its checkpoints are whole, `circumstances.py` what
numbers depend on besides the config, `files.py` how a file is written in one piece.
"""

from mmtrain.run import checkpoints
from mmtrain.run.circumstances import PACKAGE, code_version, git_state, hardware, shipped_backbones, versions
from mmtrain.run.files import sync, write_json, write_synced
from mmtrain.run.record import Run, differences, ending_loss, flat, identity, is_allowed, resolved

__all__ = [
    "PACKAGE",
    "Run",
    "checkpoints",
    "code_version",
    "differences",
    "ending_loss",
    "flat",
    "git_state",
    "hardware",
    "identity",
    "is_allowed",
    "resolved",
    "shipped_backbones",
    "sync",
    "versions",
    "write_json",
    "write_synced",
]
