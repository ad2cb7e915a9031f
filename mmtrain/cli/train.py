"""``mmtrain train``: a run, a sweep of runs or a resumed one; Hydra's own application behind a recipe's name."""

import argparse
import os
from typing import Any

from mmtrain.cli.arguments import add_verb
from mmtrain.errors import Stopped, UserError


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "train", _train, "train what a recipe says; a full Hydra application", overrides=True)
    verb.add_argument("recipe", metavar="RECIPE", nargs="?", help="a name from recipes/, or a path to a .yaml file")
    text = "continue a run: its folder, the start of its id, `latest`; `auto`: this recipe's newest, or start one"
    verb.add_argument("--resume", metavar="RUN", help=text)
    text = "a key in which the resumed run may differ from what it was, such as trainer.steps; repeat for more"
    verb.add_argument("--allow", metavar="KEY", action="append", default=[], help=text)
    hydra = verb.add_argument_group("Hydra")
    hydra.add_argument("-m", "--multirun", action="store_true", help="one run per combination of key=a,b,c")
    hydra.add_argument("-c", "--cfg", choices=["job", "hydra", "all"], help="print the config and stop")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    hydra.add_argument("-p", "--package", help="with --cfg: print this part only")
    hydra.add_argument("-i", "--info", nargs="?", const="all", metavar="WHAT", help="print how the config came about")
    hydra.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own beside conf/")


def _train(args: argparse.Namespace) -> None:
    """Hand the recipe to Hydra, which calls ``job`` once, or once per combination of a sweep."""
    if args.recipe is None:
        return _resume(args)
    from hydra._internal.utils import _run_hydra, get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from mmtrain.config import checked, recipe
    from mmtrain.run import ending_loss

    own: list[Exception] = []

    def job(cfg: Any) -> float | None:
        try:
            checked(cfg)
            from mmtrain.train.fit import fit
            from mmtrain.train.resume import Ask

            folder = fit(cfg, Ask(resume=_resumed(args.resume, cfg.folder), allow=args.allow))
            return ending_loss(folder) if HydraConfig.get().mode is not RunMode.RUN else None
        except Exception as error:
            own.append(error)
            if HydraConfig.get().mode is not RunMode.RUN:
                raise  # through the sweep's launcher, which may bring it back from another machine
            return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, where Hydra would print and exit by itself
    reader = get_args_parser()
    hydra_args = reader.parse_args(_hydra_flags(args) + recipe.hydra_words(args.recipe, args.overrides))
    try:
        _run_hydra(hydra_args, reader, job, str(recipe.CONF), "config")
    except Exception as error:
        if own or isinstance(error, UserError | Stopped) or not recipe.is_users(error):
            raise  # ours: from this process, or brought back from another's
        raise recipe.explain(error) from error
    if own:
        raise own[0]
    return None


def _resume(args: argparse.Namespace) -> None:
    """Continue a run from its own manifest, which holds its whole config."""
    if args.resume in (None, "auto"):
        args.parser.error("a RECIPE is required, or --resume RUN")
    from mmtrain.config import checked
    from mmtrain.run import Run
    from mmtrain.train.fit import fit
    from mmtrain.train.resume import Ask

    run = Run.find(args.resume)
    fit(checked(run.cfg), Ask(resume=run.path, allow=args.allow))


def _resumed(word: str | None, folder: str) -> Any:
    """What `fit` is to resume: a run's folder, or the word ``auto``."""
    from mmtrain.run import Run

    return word if word in (None, "auto") else Run.find(word, folder).path


def _hydra_flags(args: argparse.Namespace) -> list[str]:
    flags = [f"--{name}" for name in ("multirun", "resolve") if vars(args)[name]]
    for name in ("cfg", "package", "info", "config_dir"):
        if vars(args)[name] is not None:
            flags += [f"--{name.replace('_', '-')}", vars(args)[name]]
    return flags
