"""Checks a whole config before anything is built, and reports every fault at once. Composes and builds nothing.

What plain Hydra lets through and this closes: unknown keys at any depth, values of a wrong type, missing and unknown
arguments of every ``_target_``, targets outside the allowlist, values still missing.
"""

import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from mmtrain.config import gate, sampling
from mmtrain.config.target import ALLOWED, REFUSED_KEYS, listing, locate, near, parameters, suggest
from mmtrain.errors import UserError, UserErrors

ROOT = "mmtrain.run.Run"
"""The constructor of a config's root, named in ``conf/config.yaml``."""

SUPPLIED: dict[str, tuple[str, ...]] = {"logger.*": ("save_dir",), "preview": ("loggers",)}
"""Arguments that mmtrain itself passes when it builds a node (``*`` stands for one name)."""


class _Missing:
    """Stands where a value could not be read; its fault is already reported."""


MISSING = _Missing()


def check(
    cfg: DictConfig, *, allow: Sequence[str] = ALLOWED, supplied: Mapping[str, tuple[str, ...]] = SUPPLIED
) -> list[UserError]:
    """Every fault of a composed config, in the order of its keys; an empty list if it can be built."""
    faults: list[UserError] = []
    tree = _plain(cfg, "", faults)
    if not isinstance(tree, dict) or tree.get("_target_") != ROOT:
        came = repr(tree.get("_target_")) if isinstance(tree, dict) else type(tree).__name__
        return [*faults, UserError("_target_", came, f"{ROOT}, as in conf/config.yaml", "leave the root's as it is")]
    return faults + _Checker(allow, supplied).node(tree, "") + _gates(tree.get("gates")) + _sampling(tree)


def _gates(lines: Any) -> list[UserError]:
    """Lines that are no gates: an evaluation would find them, when all is trained."""
    faults = []
    for i, line in enumerate(lines if isinstance(lines, list) else []):
        try:
            gate.parse(line if isinstance(line, str) else "x >= 0", f"gates[{i}]")  # what is no text is a fault already
        except UserError as error:
            faults.append(error)
    return faults


def _sampling(tree: dict[str, Any]) -> list[UserError]:
    given = tree.get("sampling")
    wrong = sampling.fault(given, "sampling") if isinstance(given, dict) else None
    return [] if wrong is None else [wrong]


def checked(cfg: DictConfig) -> DictConfig:
    """The same config, if it has no fault.

    Raises:
        UserErrors: all its faults together.
    """
    faults = check(cfg)
    if faults:
        raise UserErrors(faults)
    return cfg


def checked_parts(parts: Mapping[str, Any], *, allow: Sequence[str] = ALLOWED) -> DictConfig:
    """Some keys of a root, as an artifact keeps them, checked as a config's are: data can name no more than a config.

    Raises:
        UserErrors: all their faults together; an interpolation is one, for what is kept is resolved.
    """
    cfg = OmegaConf.create(dict(parts))
    named, _ = parameters(locate(ROOT, "_target_"))
    checker, faults = _Checker(allow, SUPPLIED), []
    for key, value in OmegaConf.to_container(cfg, resolve=False).items():  # type: ignore[union-attr]
        where = str(key)
        if where not in named:
            fix = suggest(where, list(named), "remove it")
            faults.append(UserError(where, "unknown key", f"one of {listing(named)}", fix))
            continue
        faults += _interpolations(value, where) + checker.value(value, named[where].annotation, where)
    if faults:
        raise UserErrors(faults)
    return cfg


def checked_node(node: Any, where: str) -> DictConfig:
    """A node of a user's own file, checked as one of a config is.

    Raises:
        UserErrors: all its faults together.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(where, "no _target_ in it", "a node like those of conf/", "look at one of them")
    faults = _Checker(ALLOWED, SUPPLIED).value(OmegaConf.to_container(node, resolve=True), Any, where)
    if faults:
        raise UserErrors(faults)
    return node


def _interpolations(value: Any, where: str) -> list[UserError]:
    if isinstance(value, dict):
        return [fault for key, item in value.items() for fault in _interpolations(item, _join(where, key))]
    if isinstance(value, list):
        return [fault for i, item in enumerate(value) for fault in _interpolations(item, f"{where}[{i}]")]
    if isinstance(value, str) and ("${" in value or value == "???"):
        return [UserError(where, repr(value), "a plain value", "export the run again")]
    return []


def _plain(cfg: Any, where: str, faults: list[UserError]) -> Any:
    """The config as plain dicts and lists, interpolations resolved, with MISSING where a value cannot be read."""
    if isinstance(cfg, DictConfig):
        return {key: _read(cfg, key, _join(where, key), faults) for key in cfg}
    if isinstance(cfg, ListConfig):
        return [_read(cfg, i, f"{where}[{i}]", faults) for i in range(len(cfg))]
    return cfg


def _read(cfg: DictConfig | ListConfig, key: Any, where: str, faults: list[UserError]) -> Any:
    if OmegaConf.is_missing(cfg, key):
        faults.append(UserError(where, "still ???", "a value", f"write {where}=<value>, or choose a group's option"))
        return MISSING
    try:
        return _plain(cfg[key], where, faults)
    except InterpolationToMissingValueError:  # told where it is missing
        return MISSING
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        faults.append(UserError(where, reason, "an interpolation that resolves", "correct the name inside ${...}"))
        return MISSING
    except RecursionError:
        faults.append(UserError(where, "an interpolation that contains itself", "a value", "break the circle"))
        return MISSING


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


class _Checker:
    def __init__(self, allow: Sequence[str], supplied: Mapping[str, tuple[str, ...]]) -> None:
        self.allow, self.supplied = allow, supplied

    def node(self, node: dict[Any, Any], where: str, kind: type | None = None) -> list[UserError]:
        """Faults of a mapping that names a ``_target_``; ``kind`` is the class that it is wanted to build."""
        at = _join(where, "_target_")
        target = node["_target_"]
        if target is MISSING:
            return []
        if not isinstance(target, str):
            return [UserError(at, f"{target!r}", "a dotted name as text", "write package.module.Name")]
        try:
            built = locate(target, at, self.allow)
            named, open_ended = parameters(built)
        except UserError as error:
            return [error, *self._free(_without_target(node), where)]
        except (TypeError, ValueError):
            return [UserError(at, f"{target} has no readable signature", "a class or a function", "name another")]
        faults = []
        if kind is not None and isclass(built) and not _may_be(built, kind):
            faults.append(UserError(at, target, f"something that builds a {kind.__name__}", "name another target"))
        given = self._given(where)
        for key, value in _without_target(node).items():
            faults += self._argument(key, value, _join(where, key), target, named, open_ended, given)
        for name, parameter in named.items():
            if parameter.required and name not in node and name not in given:
                wanted = f"{_type_name(parameter.annotation)}, which {target} requires"
                faults.append(UserError(_join(where, name), "missing", wanted, f"set {_join(where, name)}"))
        return faults

    def _argument(
        self,
        key: Any,
        value: Any,
        where: str,
        target: str,
        named: Mapping[str, Any],
        open_ended: bool,
        given: Collection[str],
    ) -> list[UserError]:
        if key in REFUSED_KEYS:
            return [UserError(where, "a key of Hydra's instantiate", "plain arguments", "remove it")]
        if key in given:
            return [UserError(where, f"{value!r}", "nothing: mmtrain itself passes this one", "remove it")]
        if key in named:
            return self.value(value, named[key].annotation, where)
        takes = [name for name in named if name not in given]
        if open_ended and near(str(key), takes, cutoff=0.82) is None:
            return self._free(value, where)
        fix = suggest(str(key), takes, "remove it")
        return [UserError(where, "unknown key", f"{target} takes {listing(takes)}", fix)]

    def _given(self, where: str) -> tuple[str, ...]:
        parts = where.split(".")
        for pattern, names in self.supplied.items():
            wanted = pattern.split(".")
            if len(wanted) == len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=True)):
                return names
        return ()

    def value(self, value: Any, hint: Any, where: str) -> list[UserError]:
        """Faults of one value against one annotation."""
        if value is MISSING:
            return []
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self.value(value, arguments[0], where)
        if origin in (Union, types.UnionType):
            return self._union(value, hint, arguments, where)
        if origin is Literal:
            return [] if _is_one_of(value, arguments) else [_wrong_choice(value, arguments, where)]
        if hint is Any or hint is object or isinstance(hint, typing.TypeVar | str):
            return self._free(value, where)
        plain = origin if isclass(origin) else hint
        if not isclass(plain):
            return self._free(value, where)
        if plain in _SCALARS:
            return [] if _SCALARS[plain](value) else [_wrong_type(value, hint, where)]
        if issubclass(plain, Mapping) and not issubclass(plain, DictConfig):
            return self._mapping(value, hint, arguments, where)
        if plain in _SEQUENCES:
            return self._sequence(value, hint, plain, arguments, where)
        return self._object(value, hint, plain, where)

    def _union(self, value: Any, hint: Any, options: Sequence[Any], where: str) -> list[UserError]:
        present = [option for option in options if option is not types.NoneType]
        if len(present) == 1 and value is not None:
            return self.value(value, present[0], where)
        reports = [self.value(value, option, where) for option in options]
        if any(not report for report in reports):
            return []
        deep = [report for report in reports if any(fault.where != where for fault in report)]
        if isinstance(value, dict | list) and deep:
            return min(deep, key=len)
        return [_wrong_type(value, hint, where)]

    def _mapping(self, value: Any, hint: Any, arguments: Sequence[Any], where: str) -> list[UserError]:
        if not isinstance(value, dict):
            return [_wrong_type(value, hint, where)]
        if "_target_" in value:
            return self.node(value, where)
        inner = arguments[1] if len(arguments) == 2 else Any
        return [fault for key, item in value.items() for fault in self.value(item, inner, _join(where, key))]

    def _sequence(self, value: Any, hint: Any, plain: type, arguments: Sequence[Any], where: str) -> list[UserError]:
        if isinstance(value, dict) and "_target_" in value:
            return self.node(value, where)
        if not isinstance(value, list):
            return [_wrong_type(value, hint, where)]
        hints: list[Any] = [arguments[0] if arguments else Any] * len(value)
        if plain is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                came = f"{len(value)} items"
                return [UserError(where, came, f"{len(arguments)} as in {_type_name(hint)}", "write them all")]
            hints = list(arguments)
        pairs = enumerate(zip(value, hints, strict=True))
        return [fault for i, (item, inner) in pairs for fault in self.value(item, inner, f"{where}[{i}]")]

    def _object(self, value: Any, hint: Any, plain: type, where: str) -> list[UserError]:
        if isinstance(value, dict) and "_target_" in value:
            return self.node(value, where, None if plain is DictConfig else plain)
        wanted = _type_name(hint) if plain is DictConfig else f"a _target_ that builds a {_type_name(hint)}"
        fix = f"choose a group's option, as in <group>@{where}=<option>"
        return [UserError(where, _shown(value), wanted, fix)]

    def _free(self, value: Any, where: str) -> list[UserError]:
        """Where no annotation says what is wanted, only the targets beneath are checked."""
        if isinstance(value, dict):
            if "_target_" in value:
                return self.node(value, where)
            return [fault for key, item in value.items() for fault in self._free(item, _join(where, key))]
        if isinstance(value, list):
            return [fault for i, item in enumerate(value) for fault in self._free(item, f"{where}[{i}]")]
        return []


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | Path)


_SCALARS: dict[type, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: _is_int,
    float: lambda value: _is_int(value) or (isinstance(value, float) and not math.isnan(value)),
    str: lambda value: isinstance(value, str),
    Path: _is_text,
    bytes: lambda value: isinstance(value, bytes),
    types.NoneType: lambda value: value is None,
}
_SEQUENCES = (list, tuple, set, frozenset, *(typing.get_origin(t) for t in (Sequence[int], Iterable[int])), Collection)


def _without_target(node: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def _may_be(built: type, kind: type) -> bool:
    if typing.is_typeddict(kind) or getattr(kind, "_is_protocol", False):
        return True
    return issubclass(built, kind)


def _is_one_of(value: Any, choices: Sequence[Any]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _wrong_choice(value: Any, choices: Sequence[Any], where: str) -> UserError:
    names = [str(choice) for choice in choices]
    return UserError(where, _shown(value), f"one of {listing(names)}", suggest(str(value), names, "choose one of them"))


def _wrong_type(value: Any, hint: Any, where: str) -> UserError:
    if isinstance(value, bool) and hint is str:
        fix = "put it in quotes: YAML reads on, off, yes and no as true and false"
        return UserError(where, _shown(value), "str", fix)
    return UserError(where, _shown(value), _type_name(hint), f"write {where}=<{_type_name(hint)}>")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"a mapping of {listing(value, 6)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(a) for a in arguments)
    if origin is Literal:
        return f"one of {listing(arguments)}"
    if hint is types.NoneType:
        return "null"
    if hint is DictConfig:
        return "a mapping with a _target_"
    if origin is not None:
        return str(hint).removeprefix("typing.")
    return hint.__name__ if isclass(hint) else str(hint).removeprefix("typing.")
