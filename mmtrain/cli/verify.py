"""``mmtrain verify``: what a file says of its origin."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "verify", _verify, "read a file's label, watermark and credentials; 1 unless they agree")
    verb.add_argument("file", metavar="FILE", type=Path, help="an image or a clip")
    verb.add_argument("--watermark-key", metavar="KEY", help="of the watermark (default: the public one)")


def _verify(args: argparse.Namespace) -> int:
    from mmtrain.sample.provenance import verify
    from mmtrain.sample.watermark import KEY

    found = verify(args.file, key=args.watermark_key or KEY)
    print(found.text())
    return 0 if found.found and not found.contradictions else 1
