"""Checkpoints: what trains, its moving average, the optimizer and one integer; safetensors and JSON, no frozen weight.

Written to a staging name, flushed to the disk, their manifest last, promoted by one rename: a checkpoint is whole or it
is not there. Which of them are whole is `run/checkpoints.py`'s to say, which holds for a reader of any floor.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from mmtrain.adapter.full import load_weights
from mmtrain.artifact import trained
from mmtrain.data.decode import BadSample
from mmtrain.errors import Failure, UserError
from mmtrain.run import checkpoints, sync, write_json, write_synced
from mmtrain.train.module import TrainModule
from mmtrain.train.sharded import whole

Contents = dict[str, dict[str, Tensor]]
"""By file, tensors by name."""


def contents(module: TrainModule) -> Contents:
    """What a checkpoint of a module holds, beside its state; every rank has to ask, since weights may lie in pieces."""
    found = {"weights": weights(module), "optimizer": optimizer_tensors(module)}
    if module.average is not None:
        found["ema"] = {name: whole(average) for name, average in module.average.items()}
    return found


def weights(module: TrainModule) -> dict[str, Tensor]:
    """What trains, on the CPU, by ``<adapter>/<weight>``."""
    return {name: whole(w.detach()).contiguous().cpu() for name, w in module.weights.items()}


def digest(module: TrainModule) -> str:
    """SHA-256 of what trains: that of the ``weights.safetensors`` which a checkpoint would hold now."""
    return hashlib.sha256(save(weights(module))).hexdigest()


def optimizer_tensors(module: TrainModule) -> dict[str, Tensor]:
    """What the optimizer keeps: of AdamW moments and counts, by ``<weight>/<part>``."""
    held = module.optim.held(module.configure_optimizers(), module.weights)
    return {name: whole(tensor) for name, tensor in held.items()}


def state_of(module: TrainModule, run_id: str, bad: dict[int, BadSample]) -> dict[str, Any]:
    """A checkpoint's ``state.json``; ``bad`` are the samples that were replaced."""
    buffers = {n: float(b) for n, b in module.backbone.named_buffers() if n == "latent_square"}
    replaced = {i: [why.kind, str(why)] for i, why in bad.items()}
    return {"step": module.step, "run_id": run_id, "buffers": buffers, "bad": replaced}


def write(folder: Path, held: Contents, state: dict[str, Any]) -> Path:
    """Write ``folder/step-00000042``.

    Raises:
        Failure: the disk is full, or does not take it; earlier checkpoints are as they were.
    """
    target = folder / checkpoints.name_of(state["step"])
    staging, former = folder / f".{target.name}.part", folder / f".{target.name}.former"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, tensors in held.items():
            _tensors(staging / f"{name}.safetensors", tensors)
        write_synced(staging / "state.json", json.dumps(state, indent=1).encode())
        listed = json.dumps(checkpoints.manifest_of(staging), indent=1)
        write_synced(staging / checkpoints.MANIFEST, listed.encode())
        sync(staging)
        if target.exists():  # torn, or of a run that was told to do these steps again
            os.replace(target, former)
        os.replace(staging, target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise _not_written(target, held, error) from error
    shutil.rmtree(former, ignore_errors=True)
    return target


def _tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, path)
    sync(path)


def _not_written(target: Path, held: Contents, error: Exception) -> Failure:
    size = sum(t.numel() * t.element_size() for tensors in held.values() for t in tensors.values()) / 1e6
    left = checkpoints.listed(target.parent)
    good = f"the last good one is {left[-1].name}" if left else "there is none yet"
    fix = f"make room or mend the disk, then go on with `mmtrain train --resume {target.parents[1]}`"
    return Failure(f"checkpoint {target}", f"not written ({_reason(error)}); {good}", f"room for {size:.1f} MB", fix)


def _reason(error: Exception) -> str:
    """The system's words, which safetensors hands on as `IoError(Os { code: 28, ... })`."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    code = str(error).partition("code: ")[2].partition(",")[0]
    return os.strerror(int(code)) if code.isdecimal() else str(error).splitlines()[0]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep``, the best one, and what a killed process left half done."""
    best = checkpoints.best(folder)
    for old in [path for path in checkpoints.listed(folder)[:-keep] if path != best]:
        shutil.rmtree(old)
    for left in [*folder.glob(".step-*.part"), *folder.glob(".step-*.former")]:
        shutil.rmtree(left, ignore_errors=True)


def note_best(folder: Path, checkpoint: Path, name: str, value: float) -> bool:
    """Remember a checkpoint as the best if its number is lower than that of the one remembered; whether it is."""
    file = folder / checkpoints.BEST
    if file.is_file() and value >= json.loads(file.read_text(encoding="utf-8"))[name]:
        return False
    write_json(file, {"checkpoint": checkpoint.name, name: value})
    return True


def state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def bad_samples(checkpoint: Path) -> dict[int, BadSample]:
    """The samples that had been replaced when the checkpoint was written, for `Stream.note`.

    Raises:
        UserError: a checkpoint from before these were kept.
    """
    facts = state(checkpoint)
    if "bad" not in facts:
        fix = "resume it with the version of mmtrain that wrote it (manifest.json names its commit), or start a new run"
        raise UserError(str(checkpoint), "no count of replaced samples", "a checkpoint that this version resumes", fix)
    return {int(i): BadSample(why, kind) for i, (kind, why) in facts["bad"].items()}


def restore(module: TrainModule, checkpoint: Path) -> None:
    """Fill module, moving average and optimizer; strict. ``module.step`` becomes the checkpoint's step.

    Raises:
        UserError: other weights, or no moving average where the config wants one.
    """
    load_weights(module.weights, trained(checkpoint, average=False), str(checkpoint))
    if module.average is not None:
        file = checkpoint / "ema.safetensors"
        if not file.is_file():
            fix = "set trainer.ema=null, or start a new run"
            raise UserError(str(checkpoint), "it keeps no moving average", "one, for trainer.ema", fix)
        for name, tensor in load_file(file).items():
            module.average[name].copy_(tensor)
    facts = state(checkpoint)
    module.step = int(facts["step"])
    for name, value in facts["buffers"].items():
        module.backbone.get_buffer(name).fill_(value)
    saved = load_file(checkpoint / "optimizer.safetensors")
    module.optim.refill(module.configure_optimizers(), module.weights, saved)
