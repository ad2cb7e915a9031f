"""Export in the layout of diffusers and transformers, proved by opening what was written."""

import os
import shutil
from pathlib import Path

import torch

from mmtrain import artifact
from mmtrain.errors import UserError
from mmtrain.run import Run

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export(run: str, to: str | None, dtype: str, folder: str = "runs") -> Path:
    """Write what a run trained.

    A run that trained a whole backbone gives that backbone's folder. Any other gives ``adapter.safetensors``,
    ``artifact.json`` and ``pipeline/``, which vanilla diffusers opens.

    Args:
        run: a run's folder, id or ``latest``.
        to: folder to write; must not exist. None: ``exports/<run>``.
        dtype: ``fp16`` or ``fp32``, of the weights in the pipeline folder.
    """
    found = Run.find(run, folder)
    target = Path(to) if to is not None else Path("exports") / found.path.name
    if target.exists():
        raise UserError(str(target), "the folder exists", "a new one", "name another with --to, or remove it")
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        backbone, adapters = artifact.of_run(found)
        if artifact.is_whole_backbone(adapters):
            backbone.save(staging, DTYPES[dtype])
        else:
            artifact.write(found, staging)
            backbone.save(staging / "pipeline", DTYPES[dtype])
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
