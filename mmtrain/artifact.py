"""What a run leaves for a sampler: trained weights found and put in place, and the folder that carries them.

An artifact is a folder of ``adapter.safetensors`` and ``artifact.json``: the adapters' weights, how to build backbone
and adapters again, the base they stand on with its digest, and the run they came from. No frozen weight is in it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtrain import config
from mmtrain.adapter.full import Full
from mmtrain.errors import UserError
from mmtrain.run import Run, write_json

VERSION = 1


def assemble(cfg: DictConfig) -> tuple[Any, dict[str, Any]]:
    """Backbone with its adapters attached, as a config names them; fresh weights come from the config's seed."""
    torch.manual_seed(cfg.seed)
    backbone = config.build(cfg.backbone)
    adapters = {str(name): config.build(node) for name, node in cfg.adapters.items()}
    for adapter in adapters.values():
        adapter.attach(backbone)
    return backbone, adapters


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").is_file())


def newest(folder: Path) -> Path:
    """The newest whole checkpoint.

    Raises:
        UserError: there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(str(folder), "no checkpoint", "a run that has saved one", "train it first")
    return found[-1]


def trained(checkpoint: Path, average: bool = True) -> dict[str, Tensor]:
    """What trained, by ``<adapter>/<weight>``: its moving average if the run kept one and it is asked for."""
    name = "ema" if average and (checkpoint / "ema.safetensors").is_file() else "weights"
    return load_file(checkpoint / f"{name}.safetensors")


def fill(adapters: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Put trained weights into attached adapters; strict."""
    known = tuple(f"{name}/" for name in adapters)
    strange = [key for key in weights if not key.startswith(known)]
    if strange:
        raise UserError("adapters", f"weights of unknown adapters: {strange[:3]}", f"{list(adapters)}", "check the run")
    for name, adapter in adapters.items():
        adapter.set_weights({k.split("/", 1)[1]: w for k, w in weights.items() if k.startswith(f"{name}/")})


def of_run(run: Run) -> tuple[Any, dict[str, Any]]:
    """Backbone and adapters of a run, with the weights of its newest checkpoint."""
    backbone, adapters = assemble(run.cfg)
    checkpoint = newest(run.path / "checkpoints")
    fill(adapters, trained(checkpoint))
    for name, value in json.loads((checkpoint / "state.json").read_text())["buffers"].items():
        backbone.get_buffer(name).fill_(value)
    return backbone, adapters


def is_whole_backbone(adapters: dict[str, Any]) -> bool:
    """Whether a run trained the backbone itself, so that there is no adapter to carry."""
    return all(isinstance(adapter, Full) for adapter in adapters.values())


def write(run: Run, folder: Path) -> None:
    """Write a run's artifact into an existing empty folder."""
    checkpoint = newest(run.path / "checkpoints")
    weights = trained(checkpoint)
    facts = {
        "version": VERSION,
        "name": run.cfg.name,
        "run_id": run.run_id,
        "step": json.loads((checkpoint / "state.json").read_text())["step"],
        "base": run.manifest["bases"]["backbone"],
        "data": run.manifest["data"],
        "seed": run.cfg.seed,
        "backbone": OmegaConf.to_container(run.cfg.backbone, resolve=True),
        "adapters": OmegaConf.to_container(run.cfg.adapters, resolve=True),
        "packages": run.manifest["packages"],
    }
    header = {"run_id": run.run_id, "base": facts["base"]["digest"], "data": facts["data"]}
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "adapter.safetensors", metadata=header)
    write_json(folder / "artifact.json", facts)


def read(folder: Path) -> dict[str, Any]:
    """The facts of an artifact.

    Raises:
        UserError: the folder holds no artifact, or one of a later version.
    """
    file = folder / "artifact.json"
    if not file.is_file():
        raise UserError(str(folder), "no artifact.json", "a folder that `mmtrain export` wrote", "export a run first")
    facts = json.loads(file.read_text())
    if facts["version"] != VERSION:
        raise UserError(str(file), f"version {facts['version']}", f"version {VERSION}", "update mmtrain")
    return facts


def load(folder: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Backbone with trained adapters, the adapters, and the artifact's facts.

    Raises:
        UserError: the base at the artifact's path is not the one it was trained on.
    """
    facts = read(folder)
    cfg = config.checked_parts({"backbone": facts["backbone"], "adapters": facts["adapters"], "seed": facts["seed"]})
    backbone = config.build(cfg.backbone)
    if backbone.base["digest"] != facts["base"]["digest"]:
        raise UserError(
            str(folder),
            f"its base {facts['base']['path']} holds other weights ({backbone.base['digest'][:12]}…)",
            f"the weights it was trained on ({facts['base']['digest'][:12]}…)",
            "restore the base, or train the adapter on this one",
        )
    adapters = {str(name): config.build(node) for name, node in cfg.adapters.items()}
    for adapter in adapters.values():
        adapter.attach(backbone)
    fill(adapters, load_file(folder / "adapter.safetensors"))
    return backbone, adapters, facts
