"""``mmtrain evaluate``: base against adapted, on held-out prompts; of an alignment, on held-out pairs."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_bits, add_verb, bits, count, finite, positive, shares


def add(verbs: Any) -> None:
    evaluate = add_verb(verbs, "evaluate", _evaluate, "compare base and adapted on held-out prompts, with intervals")
    evaluate.add_argument(
        "artifact", metavar="ARTIFACT", type=Path, help="an exported folder; of an alignment, a run's too"
    )
    text = (
        "heldout: scenes of the world (default); or a .txt of prompts, one a line, or a .jsonl; of an alignment, shards"
    )
    evaluate.add_argument("--prompts-from", metavar="FILE", default="heldout", help=text)
    evaluate.add_argument("--count", type=positive, help="held-out prompts of one object (default 48; 64 pairs)")
    evaluate.add_argument("--two-objects", type=count, default=16, help="and of two objects (default 16)")
    text = "share of held-out objects that move so, such as still=0.5,circling=0.5 (default: evenly)"
    evaluate.add_argument("--motions", metavar="NAME=SHARE,...", type=shares, default={}, help=text)
    text = "words around each prompt, such as '{prompt}, in our style'"
    evaluate.add_argument("--words", metavar="TEXT", help=text)
    text = "ask each prompt again without the words: what the adapter changes where it is not called"
    evaluate.add_argument("--neutral", action="store_true", help=text)
    text = "of a video's first frame: by Stable Diffusion (default), none, the true one; several with commas"
    evaluate.add_argument("--ways", metavar="sd,none,image", help=text)
    evaluate.add_argument("--metrics", help="names in conf/metric, with commas (default: fulfilment; or all of pairs)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--seeds", type=positive, default=1, help="clips of each prompt (default 1)")
    text = "pictures that metrics compare with, such as a brand's held-out ones"
    evaluate.add_argument("--reference", metavar="SHARDS", help=text)
    evaluate.add_argument("--guidance-scale", type=float, help="how hard to steer; 1 is not at all")
    text = "noise level below which a clip is not steered (default of words: 5)"
    evaluate.add_argument("--guidance-above", type=finite, metavar="SIGMA", help=text)
    evaluate.add_argument("--steps", type=positive, help="inference steps")
    evaluate.add_argument("--negative-prompt", default="", help="what to steer away from")
    evaluate.add_argument("--num-frames", type=positive, help="of a clip (default: the model's)")
    evaluate.add_argument("--height", type=positive, help="pixels (default: the model's)")
    evaluate.add_argument("--width", type=positive, help="pixels (default: the model's)")
    text = "draws first frames (default: the shipped one); of an artifact, its base draws those of the base"
    evaluate.add_argument("--first-frame", metavar="SD", help=text)
    evaluate.add_argument(
        "--first-frame-guidance", type=finite, metavar="SCALE", help="its guidance (default: its own)"
    )
    evaluate.add_argument("--strength", type=finite, default=1.0, help="of the adapters: 0 is the base (default 1)")
    add_bits(evaluate)
    text = "of the base alone (default: as --bits); with --strength 0, what fewer bits cost"
    evaluate.add_argument("--base-bits", type=bits, metavar="auto|32|16|8", help=text)
    evaluate.add_argument("--batch", type=positive, default=8, help="clips made at once (default 8)")
    text = "threshold such as `motion >= 0.5`; repeat for more. A failed one makes the exit status 1"
    text += "; without any, its recipe's `gates` count"
    evaluate.add_argument("--gate", metavar="LINE", action="append", default=[], help=text)
    evaluate.add_argument("--gates", metavar="FILE", type=Path, help="YAML list of gates, or one under `gates:`")
    evaluate.add_argument("--out", metavar="DIR", type=Path, help="default: evaluations/ and the artifact's name")


def _evaluate(args: argparse.Namespace) -> int:
    from mmtrain import artifact
    from mmtrain.config import shipped
    from mmtrain.evaluate.alignment import subject
    from mmtrain.evaluate.arms import Settings
    from mmtrain.evaluate.gates import from_file
    from mmtrain.evaluate.run import evaluate
    from mmtrain.sample.held import bits_that_pay

    gates = [*args.gate, *([] if args.gates is None else from_file(args.gates))]
    found = subject(args.artifact)
    if not gates and found is None:
        gates = artifact.read(args.artifact).get("gates", [])  # of its recipe; exports of before have none
    if found is not None:
        return _done(_alignment(args, found, gates))
    names = ("guidance_scale", "guidance_above", "negative_prompt", "num_frames", "height", "width", "strength")
    chosen: dict[str, Any] = {"num_inference_steps": args.steps} if args.steps is not None else {}
    if args.first_frame_guidance is not None:
        chosen["first_frame_guidance"] = args.first_frame_guidance
    chosen |= {name: vars(args)[name] for name in names}
    for name in ("bits", "base_bits"):
        chosen[name] = bits_that_pay() if vars(args)[name] == "auto" else vars(args)[name]
    settings = Settings(first_frame=args.first_frame or shipped("sd"), **chosen)
    options = ("prompts_from", "count", "two_objects", "motions", "seed", "batch", "out", "words", "neutral", "seeds")
    asked = {name: vars(args)[name] for name in options}
    asked["count"] = asked["count"] or 48
    asked["reference"] = args.reference
    asked |= {"ways": None if args.ways is None else _words(args.ways), "metrics": _words(args.metrics or "fulfilment")}
    return _done(evaluate(args.artifact, settings=settings, gates=gates, **asked))


def _done(made: Path) -> int:
    from mmtrain.evaluate import outcome

    print(made)
    return 0 if all(gate["passed"] for gate in outcome.read(made)["gates"]) else 1


def _alignment(args: argparse.Namespace, found: Any, gates: list[str]) -> Path:
    """Two states of a shared space on the same pairs; what is asked of clips alone has no meaning there."""
    from mmtrain.data.shards import refuse_existing
    from mmtrain.errors import UserError
    from mmtrain.evaluate.alignment import COUNT, METRICS, evaluate

    if args.motions:
        raise UserError("--motions", "an alignment", "a model of pictures or clips", "leave it out")
    base, adapted, facts = found
    out = args.out if args.out is not None else Path("evaluations") / args.artifact.resolve().name
    refuse_existing(out)
    return evaluate(
        base,
        adapted,
        facts,
        prompts_from=args.prompts_from,
        count=args.count or COUNT,
        metrics=_words(args.metrics) if args.metrics else METRICS,
        seed=args.seed,
        gates=gates,
        out=out,
    )


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
