"""``mmtrain reproduce``: a run, an export or a recipe's expected numbers again, with a verdict."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb, count, finite, positive
from mmtrain.errors import UserError


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "reproduce", _reproduce, "run it again, and say what is equal and what differs")
    verb.usage = "%(prog)s RUN|ARTIFACT|RECIPE [key=value ...] [options]"
    verb.set_defaults(takes_overrides=True)
    text = "a run (folder, start of its id, `latest`), an exported folder, or recipes with expected numbers"
    verb.add_argument("what", metavar="WHAT", help=text)
    verb.add_argument("--steps", type=positive, help="only so many from the beginning (default: all)")
    verb.add_argument("--data", metavar="SHARDS", help="where the data lies now; its fingerprint must be the same")
    text = "relative difference of a loss that still counts as equal (default 1e-4)"
    verb.add_argument("--tolerance", type=finite, default=1e-4, help=text)
    text = "of a recipe's expected numbers, with commas (default: the first recorded one)"
    verb.add_argument("--seeds", type=_seeds, metavar="0,1,2", help=text)
    verb.add_argument("--record", action="store_true", help="measure a recipe's expected numbers and write them")
    text = "where the new run goes (default reproductions/)"
    verb.add_argument("--out", metavar="DIR", type=Path, default=Path("reproductions"), help=text)


def _seeds(text: str) -> list[int]:
    return [count(word) for word in text.split(",")]


def _reproduce(args: argparse.Namespace) -> int:
    from mmtrain.reproduce import expected, reference, replay

    recipes = args.what.split(",")
    if all(expected.is_recipe(recipe) for recipe in recipes):
        if args.overrides or args.data:
            raise UserError("reproduce", "a recipe with key=value", "its expected.json as it is", "train it instead")
        if args.record:
            for recipe in recipes:
                print(expected.record(recipe, out=args.out), flush=True)
            return 0
        asked = {"steps": args.steps, "seeds": args.seeds, "tolerance": args.tolerance, "out": args.out}
        found = {recipe: expected.check(recipe, **asked) for recipe in recipes}
        lines = [line for recipe, (_, said) in found.items() for line in [*[recipe][: len(found) - 1], *said]]
        ok = all(outcome.ok for outcomes, _ in found.values() for outcome in outcomes)
    else:
        words = [*args.overrides, *([f"dataset.shards={args.data}"] if args.data else [])]
        record = reference.find(args.what)
        asked = {"steps": args.steps, "overrides": words, "tolerance": args.tolerance, "out": args.out}
        comparison, lines = replay.reproduce(record, **asked)
        ok = comparison.verdict != "different"
    print("\n".join(lines))
    return 0 if ok else 1
