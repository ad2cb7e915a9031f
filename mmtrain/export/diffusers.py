"""Export: what a run trained, in the layout of the program that will use it, kept only once it is proved."""

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from mmtrain import artifact
from mmtrain.adapter.bottleneck import bound
from mmtrain.backbone import usual
from mmtrain.errors import UserError
from mmtrain.export.card import card
from mmtrain.export.lora import Layout, write_lora
from mmtrain.export.onnx import check, prove_onnx, write_onnx
from mmtrain.export.peft import can_be_peft, write_peft
from mmtrain.export.prove import case_of, prove, prove_artifact, prove_peft
from mmtrain.export.prove_lora import prove_lora
from mmtrain.run import Run

Dtype = Literal["fp16", "fp32"]
Format = Literal["merged", "onnx"] | Layout
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export(
    run: str,
    to: Path | str | None = None,
    dtype: Dtype = "fp32",
    folder: Path | str = "runs",
    layout: Format = "merged",
) -> Path:
    """Write what a run trained, and prove it; a folder that is not proved is not kept.

    ``merged`` is a folder that vanilla diffusers or transformers opens, the base with the adapters of its network
    folded in; ``onnx`` holds the network, adapters folded in, as a file of ONNX (`onnx.py`); the other layouts hold the
    LoRA alone (`lora.py`). All have a card, ``README.md``. Where the run trained adapters, it is their artifact too
    (``adapter.safetensors``, ``artifact.json``); of a network with bottlenecks, which ``merged`` cannot fold in, that
    alone.

    Args:
        run: a run's folder, the start of its id, or ``latest``.
        to: folder to write; must not exist. None: ``exports/<run>``.
        dtype: of the weights that vanilla libraries open.
        folder: where runs are.
        layout: of which program.

    Raises:
        UserError: no such run, the folder exists, a layout that cannot hold what was trained, or the proof fails.
    """
    found = Run.find(run, folder)
    target = Path(to) if to is not None else Path("exports") / found.path.resolve().name
    if target.exists():
        raise UserError(str(target), "the folder exists", "a new one", "name another with --to, or remove it")
    if layout == "onnx":
        check(DTYPES[dtype])
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.part")
    staging.mkdir()
    try:
        _write(found, staging, dtype, layout)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _write(run: Run, staging: Path, dtype: Dtype, layout: Format) -> None:
    backbone, adapters = artifact.of_run(run)
    if case_of(backbone) is None:
        raise UserError(
            "export", f"a {type(backbone).__name__}", "a family that can be proved", "add it to export/prove"
        )
    proof = facts = None
    if layout == "onnx":
        if artifact.is_whole_backbone(adapters):
            backbone.save(staging, DTYPES[dtype])
            prove(backbone, staging, DTYPES[dtype])
        proof = prove_onnx(backbone, write_onnx(backbone, staging, origin(run)))
    elif layout != "merged":
        file = write_lora(backbone, adapters, layout, staging, origin(run), DTYPES[dtype])
        proof = prove_lora(backbone, file, layout, DTYPES[dtype])
    elif not bound(backbone.network):
        backbone.save(staging, DTYPES[dtype])
        proof = prove(backbone, staging, DTYPES[dtype])
    if not artifact.is_whole_backbone(adapters):
        facts = artifact.write(run, backbone, staging)
        prove_artifact(backbone, staging)
    if can_be_peft(backbone, adapters):
        write_peft(backbone, adapters, staging)
        prove_peft(backbone, staging)
    usual.write(run.sampling, staging)
    run.leave_record(staging / "run")
    text = card(run, backbone, adapters, facts, proof, dtype, layout)
    (staging / "README.md").write_text(text, encoding="utf-8")


def origin(run: Run) -> dict[str, str]:
    """Where weights come from, for the header of their file."""
    base = run.manifest["bases"]["backbone"]
    told = {
        "mmtrain.recipe": run.cfg.name,
        "mmtrain.run_id": run.run_id,
        "mmtrain.base": artifact.portable(base)["path"],
        "mmtrain.base_digest": base["digest"],
        "mmtrain.data": str(run.manifest["data"]),
        "mmtrain.versions": json.dumps(run.manifest["packages"]),
    }
    words = run.cfg.dataset.get("caption")
    return {**told, "mmtrain.caption": str(words)} if words else told
