"""Export: what a run trained, in the layout of diffusers and transformers, kept only once it is proved."""

import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from mmtrain import artifact
from mmtrain.errors import UserError
from mmtrain.export.card import card
from mmtrain.export.prove import CASES, prove, prove_artifact
from mmtrain.run import Run

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export(
    run: str, to: Path | str | None = None, dtype: Literal["fp16", "fp32"] = "fp32", folder: Path | str = "runs"
) -> Path:
    """Write what a run trained, and prove it; a folder that is not proved is not kept.

    A run that trained a whole backbone gives that backbone's own folder. Any other gives an artifact
    (``adapter.safetensors``, ``artifact.json``) and ``pipeline/``, the base with the adapters of its network merged,
    which vanilla diffusers opens. Both have a card, ``README.md``.

    Args:
        run: a run's folder, the start of its id, or ``latest``.
        to: folder to write; must not exist. None: ``exports/<run>``.
        dtype: of the weights in the folder that vanilla libraries open.
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
    whole = artifact.is_whole_backbone(adapters)
    vanilla = staging if whole else staging / "pipeline"
    backbone.save(vanilla, DTYPES[dtype])
    proof = prove(backbone, vanilla, DTYPES[dtype])
    facts = None
    if not whole:
        facts = artifact.write(run, backbone, staging)
        prove_artifact(backbone, staging)
    text = card(run, backbone, adapters, facts, proof, dtype)
    (staging / "README.md").write_text(text, encoding="utf-8")
