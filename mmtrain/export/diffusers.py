"""Export: what a run trained, in the layout of diffusers and transformers, kept only once it is proved."""

import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from mmtrain import artifact
from mmtrain.adapter.bottleneck import bound
from mmtrain.errors import UserError
from mmtrain.export.card import card
from mmtrain.export.prove import CASES, prove, prove_artifact
from mmtrain.run import Run

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export(
    run: str, to: Path | str | None = None, dtype: Literal["fp16", "fp32"] = "fp32", folder: Path | str = "runs"
) -> Path:
    """Write what a run trained, and prove it; a folder that is not proved is not kept.

    The folder is one that vanilla diffusers or transformers opens, the base with the adapters of its network merged,
    and has a card, ``README.md``. Where the run trained adapters, it is their artifact too (``adapter.safetensors``,
    ``artifact.json``); of a network with bottlenecks, which nothing can fold in, it is the artifact alone.

    Args:
        run: a run's folder, the start of its id, or ``latest``.
        to: folder to write; must not exist. None: ``exports/<run>``.
        dtype: of the weights that vanilla libraries open.
        folder: where runs are.

    Raises:
        UserError: no such run, the folder exists, or the proof fails.
    """
    found = Run.find(run, folder)
    target = Path(to) if to is not None else Path("exports") / found.path.resolve().name
    if target.exists():
        raise UserError(str(target), "the folder exists", "a new one", "name another with --to, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.part")
    staging.mkdir()
    try:
        _write(found, staging, dtype)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _write(run: Run, staging: Path, dtype: Literal["fp16", "fp32"]) -> None:
    backbone, adapters = artifact.of_run(run)
    if type(backbone) not in CASES:
        raise UserError(
            "export", f"a {type(backbone).__name__}", "a family that can be proved", "add it to export/prove"
        )
    proof = facts = None
    if not bound(backbone.network):
        backbone.save(staging, DTYPES[dtype])
        proof = prove(backbone, staging, DTYPES[dtype])
    if not artifact.is_whole_backbone(adapters):
        facts = artifact.write(run, backbone, staging)
        prove_artifact(backbone, staging)
    run.leave_record(staging / "run")
    text = card(run, backbone, adapters, facts, proof, dtype)
    (staging / "README.md").write_text(text, encoding="utf-8")
