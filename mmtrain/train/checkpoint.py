"""Checkpoints: what trains, its moving average, the optimizer and one integer; safetensors and JSON, no frozen weight.

Written to a staging name, flushed to the disk, promoted by one rename: a checkpoint is whole or it is not there.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtrain.adapter.full import load_weights
from mmtrain.artifact import checkpoints, trained
from mmtrain.data.decode import BadSample
from mmtrain.train.module import TrainModule


def save(module: TrainModule, folder: Path, run_id: str, keep: int, bad: dict[int, BadSample] | None = None) -> Path:
    """Write ``folder/step-00000042`` and remove all but the newest ``keep``; ``bad`` are the samples replaced."""
    target = folder / f"step-{module.step:08d}"
    staging = folder / f".{target.name}.part"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    _tensors(staging / "weights.safetensors", {n: w.detach() for n, w in module.weights.items()})
    if module.average is not None:
        _tensors(staging / "ema.safetensors", module.average)
    _tensors(staging / "optimizer.safetensors", optimizer_tensors(module))
    buffers = {n: b for n, b in module.backbone.named_buffers() if n == "latent_square"}
    state = {"step": module.step, "run_id": run_id, "buffers": {n: float(b) for n, b in buffers.items()}}
    state["bad"] = {i: [why.kind, str(why)] for i, why in (bad or {}).items()}
    _synced(staging / "state.json", json.dumps(state, indent=1).encode())
    if target.exists():
        shutil.rmtree(target)
    os.replace(staging, target)
    _sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def bad_samples(checkpoint: Path) -> dict[int, BadSample]:
    """The samples that had been replaced when the checkpoint was written, for `Stream.note`."""
    return {int(i): BadSample(why, kind) for i, (kind, why) in state(checkpoint)["bad"].items()}


def restore(module: TrainModule, checkpoint: Path) -> None:
    """Fill module, moving average and optimizer; strict. ``module.done`` becomes the checkpoint's step."""
    load_weights(module.weights, trained(checkpoint, average=False), str(checkpoint))
    if module.average is not None:
        for name, tensor in load_file(checkpoint / "ema.safetensors").items():
            module.average[name].copy_(tensor)
    facts = state(checkpoint)
    module.done = int(facts["step"])
    for name, value in facts["buffers"].items():
        module.backbone.get_buffer(name).fill_(value)
    optimizer = module.configure_optimizers()
    saved = load_file(checkpoint / "optimizer.safetensors")
    for name, weight in module.weights.items():
        optimizer.state[weight] = {
            part: saved[f"{name}/{part}"].to(weight.device if part != "step" else "cpu")
            for part in ("step", "exp_avg", "exp_avg_sq")
        }


def optimizer_tensors(module: TrainModule) -> dict[str, Tensor]:
    """Moments and counts of AdamW by ``<weight>/<part>``."""
    optimizer = module.configure_optimizers()
    return {f"{name}/{part}": t for name, w in module.weights.items() for part, t in optimizer.state[w].items()}


def _tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _synced(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
