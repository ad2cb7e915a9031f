"""Finds what a ``_target_`` names, inside an allowlist. Builds nothing and reads no other key.

A target is a dotted module path and one public name in it: a class or a function at home in the same package. So
nothing that a module merely imports (``os``, ``subprocess``, ``pickle``) can be reached through it.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mmtrain.errors import UserError

ALLOWED: tuple[str, ...] = ("mmtrain.", "pytorch_lightning.loggers.")
"""The targets that a config may name: an entry that ends in a dot allows what lies beneath it."""

REFUSED_KEYS = ("_partial_", "_args_", "_recursive_", "_convert_")
"""Keys of Hydra's own ``instantiate`` that would slip past a check of signatures."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a constructor: its annotation (``Any`` where it cannot be known) and whether it must come."""

    annotation: Any
    required: bool


def near(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of ``words`` that ``word`` was most likely meant to be, if any is as alike as ``cutoff``."""
    lowered = {str(w).lower(): str(w) for w in words}
    found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


def suggest(word: str, words: Sequence[str], otherwise: str) -> str:
    """What to do about a misspelt word."""
    found = near(word, words)
    return f"perhaps you meant {found}" if found else otherwise


def listing(words: Iterable[str], limit: int = 40) -> str:
    """Names for one line of an error, shortened where there are very many."""
    names = sorted(str(w) for w in words)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"


def allowed(target: str, allow: Sequence[str]) -> bool:
    return any(target.startswith(a) if a.endswith(".") else target == a for a in allow)


def locate(target: str, where: str = "_target_", allow: Sequence[str] = ALLOWED) -> Callable[..., Any]:
    """The class or function that ``target`` names.

    Raises:
        UserError: outside the allowlist (nothing is imported then), not importable, absent, or neither of the two.
    """
    if not allowed(target, allow):
        raise UserError(where, f"{target} is outside the allowlist", f"a target under {listing(allow)}", "name another")
    module_name, _, name = target.rpartition(".")
    module = _import(module_name, target, where)
    home = module_name.split(".")[0]
    public = [n for n in vars(module) if not n.startswith("_") and _at_home(getattr(module, n), home)]
    if name not in public:
        fix = suggest(name, public, "correct the name")
        raise UserError(
            where, f"{module_name} has no {name}", f"one of {listing(public)}" if public else "a class or function", fix
        )
    found: Callable[..., Any] = getattr(module, name)
    return found


def _at_home(thing: object, package: str) -> bool:
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return False
    return thing.__module__.split(".")[0] == package


def _import(module_name: str, target: str, where: str) -> ModuleType:
    parent = ""
    for part in module_name.split("."):
        path = f"{parent}.{part}" if parent else part
        try:
            spec = importlib.util.find_spec(path)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is None:
            names = _submodules(parent)
            fix = suggest(part, names, "correct the path")
            wanted = f"one of {listing(names)}" if names else "an installed package"
            raise UserError(where, f"{target}: no module {path}", wanted, fix)
        parent = path
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # whatever a module raises at import is reported beside the other faults
        came = f"{module_name} cannot be imported ({type(error).__name__}: {error})"
        raise UserError(where, came, "an importable module", "install what it needs, or mend it") from error


def _submodules(package: str) -> list[str]:
    if not package:
        return []
    path = getattr(importlib.import_module(package), "__path__", None)
    return [] if path is None else [m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]


def parameters(target: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """The arguments that ``target`` takes by name, and whether it takes any others besides (``**kwargs``)."""
    signature = inspect.signature(target)
    hints = _hints(target)
    kinds = inspect.Parameter
    named = {
        name: Parameter(hints.get(name, Any), p.default is kinds.empty)
        for name, p in signature.parameters.items()
        if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    return named, any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # a name imported only for type checkers: the annotations that are not text still hold
        raw = getattr(function, "__annotations__", {})
        return {name: hint for name, hint in raw.items() if not isinstance(hint, str)}
