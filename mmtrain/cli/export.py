"""``mmtrain export``: a run's adapter in a folder that vanilla diffusers opens."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb
from mmtrain.cli.terminal import quiet


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "export", _export, "write a run's artifact and a folder that vanilla diffusers opens")
    verb.add_argument("run_folder", metavar="RUN", help="a run's folder, the start of its id, or `latest`")
    verb.add_argument("--to", metavar="DIR", type=Path, help="where to (default: exports/ and the run's name)")
    text = "merged: a whole model, adapters folded in (default); onnx: its network; the others: the LoRA alone"
    formats = ["merged", "diffusers", "peft", "comfyui", "onnx"]
    verb.add_argument("--format", choices=formats, default="merged", help=f"{text}, for that program")
    text = "an evaluation of what is exported; without one whose gates all passed nothing is written (exit status 1)"
    verb.add_argument("--gate", metavar="EVALUATION", type=Path, help=text)
    verb.add_argument("--dtype", choices=["fp16", "fp32"], default="fp32")
    text = "repository, as in org/name (private where this makes it), that a proved export is uploaded to"
    verb.add_argument("--push-to-hub", metavar="NAME", help=text)


def _export(args: argparse.Namespace) -> int | None:
    quiet()
    from mmtrain.export.diffusers import export

    if args.push_to_hub is not None:
        from mmtrain.export.hub import check_name

        check_name(args.push_to_hub)
    if args.gate is not None and not _passed(args.run_folder, args.gate):
        return 1
    made = export(args.run_folder, args.to, args.dtype, layout=args.format)
    print(made)
    if args.push_to_hub is not None:
        from mmtrain.export.hub import push

        print(push(made, args.push_to_hub))
    return None


def _passed(run: str, evaluation: Path) -> bool:
    """Whether an evaluation of the very weights that would be exported passed all its gates; says which failed.

    Raises:
        UserError: it is of other weights, or has no gates.
    """
    from mmtrain.artifact import outcome as checkpoint
    from mmtrain.errors import UserError
    from mmtrain.evaluate import gates, outcome
    from mmtrain.run import Run

    found, evaluated = Run.find(run), outcome.read(evaluation)
    step = int(checkpoint(found).name.removeprefix("step-"))
    its = evaluated["artifact"]
    if (its["run_id"], its["step"]) != (found.run_id, step):
        came = f"it is of run {its['run_id'][:8]}, step {its['step']}"
        raise UserError(
            f"--gate {evaluation}", came, f"one of run {found.run_id[:8]}, step {step}", "evaluate this one"
        )
    passages = evaluated.get("gates", [])
    if not passages:
        fix = "evaluate with --gate or --gates, or set gates in the recipe"
        raise UserError(f"--gate {evaluation}", "an evaluation without gates", "one that has some", fix)
    print("\n".join(gates.lines(passages)), file=sys.stderr)
    if not all(passage["passed"] for passage in passages):
        print(f"mmtrain: {run} is not exported: it failed its gates", file=sys.stderr)
        return False
    return True
