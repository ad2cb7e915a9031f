"""Builds what a checked config describes: nested nodes first, then a plain call. Checks no config."""

import types
import typing
from pathlib import Path
from typing import Any, Union

from omegaconf import DictConfig, OmegaConf

from mmtrain.config.target import locate, parameters
from mmtrain.errors import UserError


def build(node: DictConfig | dict[str, Any], **supplied: Any) -> Any:
    """The object that ``node`` describes, built by calling its ``_target_`` with its other keys.

    Args:
        node: a node of a checked config, resolved here if it is not yet.
        supplied: arguments that only the running program knows (``config.SUPPLIED`` lists them).

    Raises:
        UserError: from the target itself, or if the target is outside the allowlist.
    """
    tree: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    assert isinstance(tree, dict), "only a node with a _target_ can be built"
    return _call(tree, supplied)


def _call(node: dict[str, Any], supplied: dict[str, Any]) -> Any:
    target = locate(node["_target_"])
    named, _ = parameters(target)
    arguments = {
        name: _fitted(_value(value), named[name].annotation if name in named else Any)
        for name, value in node.items()
        if name != "_target_"
    }
    free = [name for name, value in node.items() if isinstance(value, dict) and "_target_" not in value]
    try:
        return target(**arguments, **supplied)
    except (UserError, OSError, MemoryError, AssertionError):
        raise
    except Exception as error:
        if not free:
            raise
        # Mappings without a target are handed on to a library, whose own check is the only one there is.
        why = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        wanted = f"{' and '.join(free)} as it takes them"
        raise UserError(str(node["_target_"]), why, wanted, "correct their keys") from error


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return _call(value, {}) if "_target_" in value else {key: _value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return value


def _fitted(value: Any, hint: Any) -> Any:
    """YAML knows neither tuples nor paths: give the constructor the type that it asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        wanted = [a for a in arguments if a is not types.NoneType]
        return value if value is None or len(wanted) != 1 else _fitted(value, wanted[0])
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, list):
        return _fitted_list(value, origin or hint, arguments)
    if isinstance(value, dict) and len(arguments) == 2:
        return {key: _fitted(item, arguments[1]) for key, item in value.items()}
    return value


def _fitted_list(value: list[Any], kind: Any, arguments: tuple[Any, ...]) -> Any:
    each = arguments if kind is tuple and arguments and arguments[-1] is not Ellipsis else arguments[:1] * len(value)
    items = [_fitted(item, inner) for item, inner in zip(value, each, strict=True)] if each else value
    return tuple(items) if kind is tuple else items
