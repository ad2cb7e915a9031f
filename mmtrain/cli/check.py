"""``mmtrain check``: every fault of a recipe's config, before anything is built."""

import argparse
from typing import Any

from mmtrain.cli.arguments import add_verb


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "check", _check, "check a recipe's whole config; build nothing", overrides=True)
    verb.add_argument("recipe", metavar="RECIPE", help="a name from recipes/, or a path to a .yaml file")


def _check(args: argparse.Namespace) -> None:
    from mmtrain import config

    cfg = config.checked(config.compose(args.recipe, args.overrides))
    nodes = [f"{key} {cfg[key]._target_}" for key in ("dataset", "backbone", "objective")]
    print(f"{args.recipe}: no fault found ({', '.join(nodes)}; adapters {', '.join(cfg.adapters) or 'none'})")
