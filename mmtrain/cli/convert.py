"""``mmtrain convert``: a CLIP between open_clip's layout and transformers'."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb
from mmtrain.cli.terminal import quiet


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "convert", _convert, "bring a CLIP from open_clip to transformers, or back")
    verb.add_argument("source", metavar="FOLDER", type=Path, help="of either library; it says which by its files")
    verb.add_argument("--to", metavar="DIR", type=Path, required=True, help="folder to write")


def _convert(args: argparse.Namespace) -> None:
    quiet()
    from mmtrain.export.open_clip import convert

    print(convert(args.source, args.to))
