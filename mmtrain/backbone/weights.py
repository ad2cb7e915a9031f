"""Weights in and out: strict loading from the hub's layout, checksums, frozen modules.

Every family loads its parts through `load`; nothing here knows a family.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as hub_logging

from mmtrain.adapter.injected import merged
from mmtrain.backbone import outline
from mmtrain.errors import UserError

MANIFEST = "manifest.json"
INJECTED = (".lora_", ".lokr_", ".hada_", ".oft_", ".learned")
"""What the weights are called that adapters put beside a layer's own."""


def load(
    cls: Any, path: str, subfolder: str | None = None, revision: str | None = None, unused: tuple[str, ...] = ()
) -> Any:
    """One model in float32, frozen, in eval mode, with every key accounted for.

    Args:
        cls: a transformers or diffusers model class.
        path: hub id or local folder in the hub's layout.
        subfolder: the part of a pipeline folder.
        revision: git revision of a hub id.
        unused: prefixes of keys that the file may hold and this class does not use.

    Raises:
        UserError: the folder or file is missing, holds another class, its checksum differs, or keys are missing or left
            over.
    """
    if not Path(path).is_dir() and not is_hub_id(path):
        wanted, fix = "a folder, or a hub id as in org/name", "check the path, or run `make backbones`"
        raise UserError(f"backbone {path}", "no such folder", wanted, fix)
    if outline.on.get():
        return outline.model(cls, path, subfolder)
    if (Path(path) / (subfolder or "") / "config.json").is_file():
        outline.check_class(cls, outline.config(path, subfolder), path, subfolder)
    verify(path, subfolder)
    where = {} if subfolder is None else {"subfolder": subfolder}
    try:
        with _unreported():
            model, info = cls.from_pretrained(
                path, revision=revision, torch_dtype=torch.float32, output_loading_info=True, **where
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {path}{'/' + subfolder if subfolder else ''}",
            str(error).splitlines()[0],
            f"a folder or hub id that {cls.__name__} can open was wanted",
            "check the path, or run `make backbones`",
        ) from error
    left_over = [k for k in info["unexpected_keys"] if not k.startswith(unused)] if unused else info["unexpected_keys"]
    if info["missing_keys"] or left_over:
        raise UserError(
            f"backbone {path}",
            f"missing keys {sorted(info['missing_keys'])[:5]}, unexpected keys {sorted(left_over)[:5]}",
            f"exactly the keys of {cls.__name__} were wanted",
            "use the weights that belong to this class",
        )
    return freeze(model)


def companion(cls: Any, path: str, subfolder: str | None = None, revision: str | None = None) -> Any:
    """What stands beside a model and has no weights: a tokenizer, a processor or a scheduler."""
    if outline.on.get():
        return outline.companion(cls, path, subfolder)
    return cls.from_pretrained(path, revision=revision, **({} if subfolder is None else {"subfolder": subfolder}))


def index(cls: Any, path: str, revision: str | None = None) -> dict[str, Any]:
    """What a pipeline's own index says, by the pipeline's class."""
    if outline.on.get() and not Path(path).is_dir():
        return dict(outline.published(path)["index"])
    return dict(cls.load_config(path, revision=revision))


def is_hub_id(path: str) -> bool:
    """Whether a text that names no folder may name a model of the hub; asking there takes half a minute offline."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None and not Path(path).parent.exists()


@contextmanager
def _unreported() -> Iterator[None]:
    """Keys are accounted for by `load`: the libraries' own reports and bars would only repeat it."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def freeze(module: nn.Module) -> nn.Module:
    """The module in eval mode and without gradients."""
    return module.requires_grad_(False).eval()


def copy_as(module: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of the module in another dtype; the module in use keeps its own."""
    return copy.deepcopy(module).to(dtype)


def save_pipeline(backbone: Any, folder: Path, dtype: torch.dtype) -> None:
    """A folder that the vanilla pipeline opens: the backbone's parts in a dtype, adapters merged."""
    modules = {name: part for name, part in backbone.parts().items() if isinstance(part, nn.Module)}
    copies = {name: merged(module).to(dtype) for name, module in modules.items()}
    pipeline = backbone.pipeline()
    pipeline.register_modules(**copies)
    pipeline.save_pretrained(folder)
    write_manifest(folder)


def verify(path: str, subfolder: str | None = None) -> None:
    """Check the files of a local folder against the manifest beside them, if there is one.

    Raises:
        UserError: a listed file is missing or its sha256 differs.
    """
    root = Path(path)
    manifest = next((root / MANIFEST for root in (root, root.parent) if (root / MANIFEST).is_file()), None)
    if not root.is_dir() or manifest is None:
        return
    inside = root / subfolder if subfolder else root
    for name, wanted in json.loads(manifest.read_text())["sha256"].items():
        file = manifest.parent / name
        if not file.is_relative_to(inside):
            continue
        if not file.is_file():
            raise UserError(
                str(file),
                "the file is missing",
                f"{manifest} lists it",
                "restore it from the repository, or run `make backbones`",
            )
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != wanted:
            raise UserError(
                str(file),
                f"sha256 {found[:16]}… came",
                f"{wanted[:16]}… was wanted",
                "restore the file from the repository, or run `make backbones`",
            )


def write_manifest(folder: Path) -> None:
    """List the sha256 of every file below a folder in its manifest, the last step of saving one.

    Half-precision files are marked to be opened in float32: transformers opens a model in the type that its config
    names, diffusers in float32, and a pipeline of both would not run. Where the model was loaded from is left out: it
    is a path of the machine that wrote it.
    """
    for config in folder.rglob("config.json"):
        facts = json.loads(config.read_text())
        told = {name: fact for name, fact in facts.items() if name != "_name_or_path"}
        if told.get("dtype") == "float16":
            told["dtype"] = "float32"
        if told != facts:
            config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    digests = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1) + "\n")


def digest(*modules: nn.Module) -> str:
    """Hash of names, shapes and values of the modules' weights: the same for the same numbers in memory, whether LoRA
    is attached to them or not."""
    total = hashlib.blake2b(digest_size=16)
    for module in modules:
        given = module.state_dict().items()
        weights = {n.replace(".base_layer.", "."): w for n, w in given if not any(part in n for part in INJECTED)}
        for name, tensor in sorted(weights.items()):
            total.update(f"{name}{tuple(tensor.shape)}".encode())
            total.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return total.hexdigest()
