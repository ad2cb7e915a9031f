"""Models as their shapes alone: on the meta device, from their configs, without a weight and without the network.

Inside `outlined`, `weights.load` and `weights.companion` come here, so that a backbone's own constructor builds the
whole family as an outline. Configs are read from a folder, or from ``published/``: what the hub says of the models
that people train most, with the parameter counts that were published.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig

from mmtrain.errors import UserError

PUBLISHED = Path(__file__).with_name("published")
on: ContextVar[bool] = ContextVar("outlined", default=False)


class NoFactsError(UserError):
    """A hub id of which nothing is known here: no fault of a config, but no outline either."""


@contextmanager
def outlined() -> Iterator[None]:
    """Inside, models are built as outlines."""
    token = on.set(True)
    try:
        yield
    finally:
        on.reset(token)


def published(path: str) -> dict[str, Any]:
    """What is known of a hub id: ``index``, ``parts`` (configs by subfolder) and ``parameters`` (counts by subfolder);
    of a model that comes alone, what its ``tokenizer`` and ``processor`` are set to, too.

    Raises:
        NoFactsError: nothing is.
    """
    known: dict[str, dict[str, Any]] = {}
    for file in sorted(PUBLISHED.glob("*.json")):
        facts = json.loads(file.read_text())
        known |= dict.fromkeys(facts["ids"], facts)
    if path not in known:
        some = ", ".join(sorted(known))
        raise NoFactsError(
            f"backbone {path}", "no facts about it here", f"a folder, or one of {some}", "give its folder"
        )
    return known[path]


def config(path: str, subfolder: str | None) -> dict[str, Any]:
    """The config of a model, or of a part of a pipeline."""
    part = subfolder or ""
    file = Path(path) / part / "config.json"
    if Path(path).is_dir():
        if not file.is_file():
            raise UserError(f"backbone {path}", f"no {file.relative_to(path)} in it", "a model's folder", "check it")
        return json.loads(file.read_text())
    parts = published(path)["parts"]
    if part not in parts:
        raise UserError(f"backbone {path}", f"no part {part!r}", f"one of {', '.join(parts)}", "choose another model")
    return parts[part]


def model(cls: Any, path: str, subfolder: str | None) -> Any:
    """A model of the hub's class on the meta device, frozen, in eval mode.

    Raises:
        UserError: diffusers' config of another class, which this one would misread.
    """
    given = config(path, subfolder)
    check_class(cls, given, path, subfolder)
    with torch.device("meta"):
        if hasattr(cls, "_model_mapping"):  # a transformers class that finds the model's own
            built = cls.from_config(AutoConfig.for_model(**given))
        elif hasattr(cls, "from_config") and not hasattr(cls, "config_class"):
            built = cls.from_config(given)
        else:
            built = cls(_of(cls, given))
    return built.requires_grad_(False).eval().to("meta")


def check_class(cls: Any, given: dict[str, Any], path: str, subfolder: str | None) -> None:
    """Refuse diffusers' config of another class: its keys would be misread, and the fault named far from its cause."""
    named = given.get("_class_name", cls.__name__)
    if named != cls.__name__:
        where = f"backbone {path}{'/' + subfolder if subfolder else ''}"
        raise UserError(where, f"a {named}", f"a {cls.__name__}", "name another folder")


def _of(cls: Any, given: dict[str, Any]) -> Any:
    """A transformers config; a whole CLIP's is split where one tower is asked for."""
    kind = cls.config_class
    nested = given.get(f"{kind.base_config_key}", given) if getattr(kind, "base_config_key", "") else given
    return kind.from_dict(nested)


class Beside:
    """What is published of a tokenizer or a processor: settings, by name, and no vocabulary."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def __call__(self, *_: Any) -> SimpleNamespace:
        """A caption of one token that is no mark."""
        return SimpleNamespace(input_ids=[-1])


def companion(cls: Any, path: str, subfolder: str | None) -> Any:
    """A scheduler, a tokenizer or a processor by its published settings; None where none are."""
    if Path(path).is_dir():
        return cls.from_pretrained(path, **({} if subfolder is None else {"subfolder": subfolder}))
    facts = published(path)
    if hasattr(cls, "from_config"):
        given = facts["parts"].get(subfolder or "")
        return None if given is None else cls(**given)
    kind = "processor" if hasattr(cls, "preprocess") else "tokenizer"
    return Beside(**facts[kind]) if kind in facts else None
