"""``mmtrain audit``: what a model shows when a prompt does not say, base beside adapted, against a target."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb, positive


def add(verbs: Any) -> None:
    audit = add_verb(verbs, "audit", _audit, "count what is shown for neutral prompts, against a target")
    audit.add_argument("artifact", metavar="ARTIFACT", type=Path, help="an exported folder")
    audit.add_argument("questions", metavar="PROMPTS", type=Path, help="YAML: prompts, attributes, samples")
    audit.add_argument("--clip", metavar="CLIP", help="reads what the judge does not (default: the shipped one)")
    audit.add_argument("--steps", type=positive, help="inference steps")
    audit.add_argument("--guidance-scale", type=float)
    audit.add_argument("--seed", type=int, default=0)
    audit.add_argument("--batch", type=positive, default=8, help="clips made at once (default 8)")
    audit.add_argument("--out", metavar="DIR", type=Path, help="default: audits/ and the artifact's name")


def _audit(args: argparse.Namespace) -> None:
    import json

    from mmtrain.config import shipped
    from mmtrain.evaluate.arms import Settings
    from mmtrain.evaluate.audit import audit, lines

    chosen: dict[str, Any] = {} if args.steps is None else {"num_inference_steps": args.steps}
    settings = Settings(first_frame=shipped("sd"), guidance_scale=args.guidance_scale, **chosen)
    how = {"clip": args.clip or shipped("clip"), "seed": args.seed, "batch": args.batch, "out": args.out}
    made = audit(args.artifact, args.questions, settings=settings, **how)
    print("\n".join(lines(json.loads((made / "audit.json").read_text(encoding="utf-8"))["rows"])))
    print(made / "audit.html")
