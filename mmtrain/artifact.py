"""What a run leaves for a sampler: trained weights found and put in place, and the folder that carries them.

An artifact is a folder of ``adapter.safetensors`` and ``artifact.json``: the adapters' weights, how to build backbone
and adapters again, the base they stand on with its digest, and the run they came from. No frozen weight is in it, and
nothing in it can run code: it names targets of the menu only, and no text in it is evaluated.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtrain import config
from mmtrain.adapter.bridge import Bridge
from mmtrain.adapter.full import Full
from mmtrain.backbone import usual
from mmtrain.backbone.pipelined import Pipelined
from mmtrain.backbone.weights import digest, is_hub_id
from mmtrain.config.recipe import CONF
from mmtrain.config.target import parameters
from mmtrain.errors import UserError
from mmtrain.run import Run, write_json
from mmtrain.run.checkpoints import best, fault, newest

VERSION = 1
WEIGHTS, FACTS = "adapter.safetensors", "artifact.json"
PATHS = frozenset({"path", "text_path", "codec", "clip", "motion_path", "base_path", "sd", "teacher"})
"""Keys of a backbone's config that name folders."""


# of a run -------------------------------------------------------------------------------------------------------------


def assemble(cfg: DictConfig) -> tuple[Any, dict[str, Any]]:
    """Backbone with its adapters attached, as a config names them; fresh weights come from the config's seed."""
    torch.manual_seed(cfg.seed)
    backbone = config.build(cfg.backbone)
    return backbone, attached(backbone, cfg.adapters)


def attached(backbone: Any, nodes: DictConfig) -> dict[str, Any]:
    """The adapters that a config names, put in place in its order."""
    adapters = {str(name): config.build(node) for name, node in nodes.items()}
    for adapter in adapters.values():
        adapter.attach(backbone)
    return adapters


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
    """Backbone and adapters of a run, with the weights of the checkpoint that is its outcome.

    Raises:
        UserError: no checkpoint, or the base has changed since the run.
    """
    checkpoint = outcome(run)
    backbone, adapters = assemble(run.cfg)
    if not is_whole_backbone(adapters):
        _same_base(backbone, run.manifest["bases"]["backbone"], str(run.path))
    fill(adapters, trained(checkpoint))
    for name, value in json.loads((checkpoint / "state.json").read_text())["buffers"].items():
        backbone.get_buffer(name).fill_(value)
    return backbone, adapters


def outcome(run: Run) -> Path:
    """The checkpoint that a run is exported from: the newest whole one, of a run with patience the best."""
    found = best(run.path / "checkpoints") if run.cfg.trainer.get("patience") is not None else None
    return found if found is not None and fault(found) is None else newest(run.path / "checkpoints")


def is_whole_backbone(adapters: dict[str, Any]) -> bool:
    """Whether a run trained the backbone itself, so that there is no adapter to carry."""
    return all(isinstance(adapter, Full) for adapter in adapters.values())


# writing --------------------------------------------------------------------------------------------------------------


def write(run: Run, backbone: Any, folder: Path) -> dict[str, Any]:
    """Write a run's artifact into an existing folder, and return its facts.

    Args:
        run: with a checkpoint.
        backbone: as `of_run` gives it.
        folder: where to.
    """
    checkpoint = outcome(run)
    base = run.manifest["bases"]["backbone"]
    header = {"run_id": run.run_id, "base": base["digest"], "data": run.manifest["data"]}
    save_file({n: w.contiguous() for n, w in trained(checkpoint).items()}, folder / WEIGHTS, metadata=header)
    facts = {
        "version": VERSION,
        "name": run.cfg.name,
        "run_id": run.run_id,
        "step": json.loads((checkpoint / "state.json").read_text())["step"],
        "seed": run.cfg.seed,
        "data": run.manifest["data"],
        "base": portable(base),
        "text_digest": text_digest(backbone),
        "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "backbone": portable(OmegaConf.to_container(run.cfg.backbone, resolve=True)),
        "adapters": portable(OmegaConf.to_container(run.cfg.adapters, resolve=True)),
        "packages": run.manifest["packages"],
        "gates": list(run.gates),
    }
    write_json(folder / FACTS, facts)
    return facts


def text_digest(backbone: Any) -> str | None:
    """Digest of the text tower that an adapter reads, where there is one."""
    text = getattr(backbone, "text", None)
    return None if text is None else digest(text.model)


def portable(value: Any, key: str = "") -> Any:
    """A config in which a backbone that travels with mmtrain is ``${shipped:name}``, and another folder absolute."""
    if isinstance(value, dict):
        return {name: portable(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if key not in PATHS or not isinstance(value, str) or not Path(value).is_dir():
        return value
    home, path = Path(config.shipped("")).resolve(), Path(value).resolve()
    return f"${{shipped:{path.relative_to(home)}}}" if path.is_relative_to(home) else str(path)


def local(value: Any) -> Any:
    """What `portable` gave, with this machine's paths."""
    if isinstance(value, dict):
        return {name: local(item) for name, item in value.items()}
    if isinstance(value, list):
        return [local(item) for item in value]
    found = re.fullmatch(r"\$\{shipped:([\w./-]+)\}", value) if isinstance(value, str) else None
    return config.shipped(found[1]) if found else value


# reading --------------------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Any]:
    """The facts of an artifact.

    Raises:
        UserError: the folder holds no artifact, one of another version, or a damaged one.
    """
    file = folder / FACTS
    if not file.is_file():
        raise UserError(str(folder), f"no {FACTS}", "a folder that `mmtrain export` wrote", "export a run first")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        version = facts["version"]
        if version == VERSION:
            _ = [facts[name] for name in ("name", "run_id", "seed", "sha256", "backbone", "adapters", "text_digest")]
            _ = facts["base"]["path"], facts["base"]["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(file), f"unreadable ({error})", "what `mmtrain export` wrote", "export again") from error
    if version != VERSION:
        raise UserError(str(file), f"version {version}", f"version {VERSION}", "update mmtrain, or export again")
    return facts


def brings_text(facts: Mapping[str, Any]) -> bool:
    """Whether an adapter of an artifact puts words in the place of a first frame's token."""
    return any(config.locate(node["_target_"]) is Bridge for node in facts["adapters"].values())


def load(folder: Path | str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Backbone with trained adapters, the adapters, and the artifact's facts.

    Raises:
        UserError: damaged files, a config outside the allowlist, or a base that is not the one it was trained on.
    """
    folder = Path(folder)
    facts, weights = read(folder), _weights(folder)
    parts = config.checked_parts({"adapters": local(facts["adapters"])}, allow=_menu("adapter"))
    backbone = base(folder)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and filled below
        adapters = attached(backbone, parts.adapters)
    fill(adapters, weights)
    if isinstance(backbone, Pipelined):
        backbone.usual = usual.read(folder)
    return backbone, adapters, facts


def base(folder: Path | str) -> Any:
    """The backbone that an artifact stands on, without its adapters.

    Raises:
        UserError: a config outside the allowlist, or a base that is not the one the artifact was trained on.
    """
    folder = Path(folder)
    facts = read(folder)
    parts = {"backbone": local(facts["backbone"]), "seed": facts["seed"]}
    cfg = config.checked_parts(parts, allow=_menu("backbone"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        backbone = config.build(cfg.backbone)
    _same_base(backbone, facts["base"], str(folder))
    if text_digest(backbone) != facts["text_digest"]:
        came = f"its text tower {cfg.backbone.text_path} holds other weights"
        raise UserError(str(folder), came, "the weights it was trained on", "restore them")
    return backbone


def _menu(group: str) -> tuple[str, ...]:
    """The targets that an artifact may name: those of the menu, where a config may name any of mmtrain's."""
    options = (OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml")))
    return tuple(str(option["_target_"]) for option in options if isinstance(option, DictConfig))


def _weights(folder: Path) -> dict[str, Tensor]:
    file, wanted = folder / WEIGHTS, read(folder)["sha256"]
    if not file.is_file():
        raise UserError(str(file), "the file is missing", f"{folder / FACTS} stands for it", "export the run again")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wanted:
        raise UserError(str(file), f"sha256 {found[:16]}… came", f"{wanted[:16]}… was wanted", "export the run again")
    try:
        return load_file(file)
    except safetensors.SafetensorError as error:
        raise UserError(str(file), str(error), "a safetensors file", "export the run again") from error


def _same_base(backbone: Any, wanted: dict[str, str], where: str) -> None:
    found = backbone.base["digest"]
    if found != wanted["digest"]:
        raise UserError(
            where,
            f"its base {wanted['path']} holds other weights ({found[:12]}…)",
            f"the weights it was trained on ({wanted['digest'][:12]}…)",
            "restore the base, or train the adapter on this one",
        )


def opened(where: str, *, text_path: str | None = None) -> tuple[Any, dict[str, Any]]:
    """A backbone to sample from, and its facts: of an artifact, of any pipeline folder, or of a hub id.

    Args:
        where: a folder that `mmtrain export` wrote, one that diffusers opens, or a hub id.
        text_path: CLIP whose text tower reads prompts, for a Stable Video Diffusion that comes without one.

    Raises:
        UserError: nothing there that samples.
    """
    folder = Path(where)
    if (folder / FACTS).is_file():
        backbone, _, facts = load(folder)
        return backbone, facts
    name, families = _pipeline_class(where), _families()
    if name not in families:
        raise UserError(where, f"a {name}", f"one of {', '.join(families)}", "name another folder")
    family, told = families[name]
    more = {} if text_path is None else {"text_path": text_path}
    takes, _ = parameters(family)
    if not more.keys() <= takes.keys():
        raise UserError(where, f"a {name}, which reads prompts itself", "no text tower beside it", "leave --text out")
    backbone = family(path=where, **told, **more)
    return backbone, {"name": folder.resolve().name if folder.is_dir() else where, "run_id": None}


def _families() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The menu's backbones by the vanilla pipelines that each opens, and what each is told then."""
    found: list[Any] = [config.locate(target) for target in _menu("backbone")]
    opens = [(f, f.opens or {str(f.pipeline_class): {}}) for f in found if hasattr(f, "pipeline_class")]
    return {name: (family, told) for family, names in opens for name, told in names.items()}


def _pipeline_class(where: str) -> str:
    folder = Path(where)
    wanted, fix = "an artifact, a pipeline folder, or a hub id", "export a run, or correct the path"
    if folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise UserError(where, f"neither {FACTS} nor model_index.json in it", wanted, fix)
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["_class_name"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(str(file), f"unreadable ({error})", "a pipeline's index", fix) from error
    if not is_hub_id(where):
        raise UserError(where, "no such folder", wanted, fix)
    try:
        return str(DiffusionPipeline.load_config(where)["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        came = f"no such folder, and not from the hub either ({str(error).splitlines()[0]})"
        raise UserError(where, came, wanted, fix) from error
