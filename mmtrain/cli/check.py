"""``mmtrain check``: every fault of a recipe's config, and the run's plan, before any weight is loaded."""

import argparse
from typing import Any

from mmtrain.cli.arguments import add_verb


def add(verbs: Any) -> None:
    text = "check a recipe's whole config, and say what the run needs; load nothing"
    verb = add_verb(verbs, "check", _check, text, overrides=True)
    verb.add_argument("recipe", metavar="RECIPE", help="a name from recipes/, or a path to a .yaml file")
    text = "what to plan for: cpu, t4, 3090, 4090, 5090, l40s, a100-40, a100, h100, h200 (default: cpu or h100)"
    verb.add_argument("--device", metavar="NAME", help=text)


def _check(args: argparse.Namespace) -> None:
    from mmtrain import config

    cfg = config.checked(config.compose(args.recipe, args.overrides))
    from mmtrain.backbone.outline import NoFactsError
    from mmtrain.train.devices import device
    from mmtrain.train.plan import plan, what_fits, words

    on = device(args.device or ("cpu" if cfg.trainer.accelerator == "cpu" else "h100"))
    try:
        made = plan(cfg)
        lines = words(made, on, what_fits(cfg, made, on))
    except NoFactsError as error:
        lines = [f"no plan: {error}"]
    nodes = [f"{key} {cfg[key]._target_}" for key in ("dataset", "backbone", "objective")]
    print(f"{args.recipe}: no fault found ({', '.join(nodes)}; adapters {', '.join(cfg.adapters) or 'none'})")
    print("\n".join(lines))
