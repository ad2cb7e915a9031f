"""Composes a recipe and the shell's overrides into one config, and turns Hydra's errors into ours. Checks no values.

``conf/`` is the menu (one folder per group) and ``recipes/`` a flat group beside it: in the source tree both lie at
the repository's root, in an installed wheel inside the package.
"""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmtrain.config.target import listing, suggest
from mmtrain.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
_TREE = PACKAGE.parent
IN_TREE = not (PACKAGE / "conf").is_dir()
CONF = (_TREE if IN_TREE else PACKAGE) / "conf"
RECIPES = (_TREE if IN_TREE else PACKAGE) / "recipes"
BACKBONES = _TREE / "data" / "backbones" if IN_TREE else PACKAGE / "backbones"

_USERS = (HydraException, OmegaConfBaseException, ConfigLoadError, yaml.YAMLError, UnicodeDecodeError)


def shipped(name: str) -> str:
    """The folder of a backbone that travels with mmtrain: ``${shipped:svd}`` in a config."""
    return str(BACKBONES / name)


def native_precision(accelerator: str) -> str:
    """What a device computes fastest in: ``${native_precision:cpu}`` in a config; recorded as what it came to."""
    from mmtrain.threads import multiplies_bf16

    return "bf16-mixed" if multiplies_bf16(accelerator) else "32-true"


OmegaConf.register_new_resolver("shipped", shipped, replace=True)
OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)


class RecipeSource(FileConfigSource):
    """A folder of recipes as the flat Hydra group ``recipes``, whatever the folder is called."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    @staticmethod
    def _inside(config_path: str) -> str | None:
        if config_path == "recipes":
            return ""
        return config_path.removeprefix("recipes/") if config_path.startswith("recipes/") else None

    def load_config(self, config_path: str) -> ConfigResult:
        inside = self._inside(config_path)
        if inside is None:
            raise ConfigLoadError(f"Config not found : {config_path}")
        return super().load_config(inside)

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "recipes")

    def is_config(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return bool(inside) and super().is_config(str(inside))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if self._inside(config_path) is None:
            return [] if results_filter == ObjectType.CONFIG else ["recipes"]
        return recipes(Path(self.path))


class RecipePath(SearchPathPlugin):
    """Puts the folders of recipes behind ``conf/`` in Hydra's search path: the user's own first, then ours."""

    own: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in [*self.own, RECIPES]:
            search_path.append("mmtrain", f"recipes://{folder}")


Plugins.instance().register(RecipeSource)
Plugins.instance().register(RecipePath)


def recipes(folder: Path = RECIPES) -> list[str]:
    """The names of the recipes in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []


def groups() -> list[str]:
    """The menu's groups, by name."""
    return sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir())


def compose(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a recipe, a name from ``recipes/`` or a path to a YAML file, under ``key=value`` overrides.

    Raises:
        UserError: an unknown recipe or group option, an override that cannot be read, YAML that cannot be read.
    """
    words = hydra_words(recipe, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("config", words)
    except Exception as error:
        if not is_users(error):
            raise
        raise explain(error) from error


def hydra_words(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Our words as Hydra's overrides; a recipe outside ``recipes/`` joins the search path.

    ``key=value`` becomes ``++key=value`` (set it, or add it) unless the key is a group: ``check`` then reports every
    unknown key together and says what was meant, where Hydra would stop at the first.
    """
    RecipePath.own = []
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe).resolve()
        if not path.is_file() or path.suffix != ".yaml":
            raise UserError(recipe, "no such recipe file", "a path to a .yaml file", "correct the path")
        RecipePath.own, recipe = [path.parent], path.stem
    elif recipe not in recipes():
        names = recipes()
        if not re.fullmatch(r"[\w.-]+", recipe):
            raise UserError(recipe, "not a recipe's name", f"one of {listing(names)}", "name the recipe first")
        fix = suggest(recipe, names, "choose one of them, or give a path to a .yaml file")
        raise UserError(recipe, "unknown recipe", f"one of {listing(names)}", fix)
    menu = groups()
    return [f"recipes={recipe}", *(_forced(word, menu) for word in overrides)]


def _forced(word: str, menu: Sequence[str]) -> str:
    key, equals, value = word.partition("=")
    if key in menu and value == "null":
        return f"~{key}"
    plain = equals and re.fullmatch(r"[A-Za-z_][\w.\[\]-]*", key)
    if not plain or key in menu or key == "recipes" or key.split(".")[0] == "hydra":
        return word
    return f"++{word}"


def is_users(error: BaseException) -> bool:
    """Whether the composing libraries complain about what a user wrote, and not about a bug of ours.

    Hydra asserts, and raises ValueError and others, over damaged words too: what it raises from inside is its own.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    home = str(frames[-1].f_globals.get("__name__", "")).split(".")[0] if frames else ""
    return isinstance(error, _USERS) or home in ("hydra", "omegaconf", "yaml")


def explain(error: BaseException) -> UserError:
    """One of Hydra's errors, in our words."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, list(error.options or []))
    if isinstance(error, OverrideParseException):
        wanted, fix = "key=value in Hydra's grammar", "quote what holds spaces or commas, as in 'key=\"a, b\"'"
        return UserError(error.override.lstrip("+"), _first(error.message), wanted, fix)
    lost = re.search(r"config group '([^']+)' does not exist", text)
    if lost:
        return _no_option(lost.group(1), [])
    many = re.search(r"Ambiguous value for argument '\+*([^=']+)=([^']*)'", text)
    if many:
        came, fix = f"several values, {many.group(2)}", "add -m to run them all, or write [a,b] for a list"
        return UserError(many.group(1), came, "one value", fix)
    swept = re.search(r"Sweep parameters '\+*([^=']+)=([^']*)' requires --multirun", text)
    if swept:
        return UserError(swept.group(1), swept.group(2), "one value", "add -m to run them all")
    override = re.search(r"Could not (?:override|append|delete)[^'\"]*'([^']+)'", text)
    if override:
        return _no_key(override.group(1), text)
    if isinstance(error, yaml.YAMLError):
        mark: Any = getattr(error, "problem_mark", None)
        where = f"{mark.name}:{mark.line + 1}" if mark else "config"
        return UserError(where, str(getattr(error, "problem", None) or text), "YAML", "mend the file")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    where = str(cause.full_key or "config") if isinstance(cause, OmegaConfBaseException) else "config"
    came = _first(str(cause)) or type(error).__name__
    return UserError(where, came, "a config that composes", "correct the key or line that it names")


def _no_option(missing: str, options: list[str]) -> UserError:
    group, _, name = missing.rpartition("/")
    if not group or not options:
        fix = suggest(group or missing, groups(), "correct the name")
        return UserError(missing, "no such config", f"a group of {listing(groups())}", fix)
    return UserError(group, f"no option {name}", f"one of {listing(options)}", suggest(name, options, "choose one"))


def _no_key(key: str, text: str) -> UserError:
    group, _, package = key.partition("@")
    if "No match in the defaults list" in text and package:
        fix = suggest(group, groups(), f"to add it, write +{key}=<option>")
        if group in groups():
            fix = f"to add it, write +{key}=<option>"
        return UserError(key, "nothing there to override", "a choice that the recipe makes", fix)
    fix = suggest(group, groups(), "correct the name")
    return UserError(key, _first(text), f"a key of the config, or a group of {listing(groups())}", fix)


def _first(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".;") if lines else ""
