"""``mmtrain export``: a run's adapter in a folder that vanilla diffusers opens."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb
from mmtrain.cli.terminal import quiet


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "export", _export, "write a run's artifact and a folder that vanilla diffusers opens")
    verb.add_argument("run_folder", metavar="RUN", help="a run's folder, the start of its id, or `latest`")
    verb.add_argument("--to", metavar="DIR", type=Path, help="where to (default: exports/ and the run's name)")
    text = "merged: a whole model, adapters folded in (default); the others: the LoRA alone, for that program"
    verb.add_argument("--format", choices=["merged", "diffusers", "peft", "comfyui"], default="merged", help=text)
    verb.add_argument("--dtype", choices=["fp16", "fp32"], default="fp32")


def _export(args: argparse.Namespace) -> None:
    quiet()
    from mmtrain.export.diffusers import export

    print(export(args.run_folder, args.to, args.dtype, layout=args.format))
