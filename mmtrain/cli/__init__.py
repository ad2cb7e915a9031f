"""The command line: verbs and their options, each in a file of its own with an ``add``, listed in `VERBS`.

Holds no work of its own: a verb is a thin call, and imports what it needs when it runs, so that help is instant. Exit
status 0 done; 1 it went wrong on the way, a gate failed, or `shards check`, `reproduce` or `verify` found what should
not be; 2 a user's mistake (one block, no stack trace); 75 a scheduler stopped it and it has saved, so start it again;
130 interrupted. Anything else is our bug and shows its trace.
"""

import argparse
import errno
import sys
from collections.abc import Sequence

from mmtrain.cli import audit, check, convert, evaluate, export, report, reproduce, sample, shards, train, verify
from mmtrain.cli.arguments import Parser
from mmtrain.errors import Stopped, UserError, UserErrors
from mmtrain.threads import keep_pages

VERBS = (
    check,
    train,
    shards,
    export,
    convert,
    sample,
    evaluate,
    audit,
    report,
    verify,
    reproduce,
)  # in the order of help

_PLACES = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""What the system says about a path or a disk, and a user can mend."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    trace = "--trace" in words
    try:
        args = _parse(words)
        keep_pages()
        status: int | None = args.run(args)
    except UserError as error:
        if trace:
            raise
        print(_block(error), file=sys.stderr)
        return error.status
    except Stopped as stop:
        print(f"mmtrain: {stop}", file=sys.stderr)
        return stop.status
    except OSError as error:
        if trace or error.errno not in _PLACES:
            raise
        print(
            f"mmtrain: {error.filename or 'files'}: {error.strerror}; a place that can be read and written; "
            "choose another, or mend this one.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        if trace:
            raise
        print("mmtrain: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _block(error: UserError) -> str:
    if isinstance(error, UserErrors) and len(error.errors) > 1:
        lines = "".join(f"\n  {e}" for e in error.errors)
        return f"mmtrain: {len(error.errors)} mistakes{lines}"
    return f"mmtrain: {error}"


def _parse(words: list[str]) -> argparse.Namespace:
    args, extras = parser().parse_known_args([word for word in words if word != "--trace"])
    loose = [word for word in extras if word.startswith("-") or not args.takes_overrides]
    if loose:
        args.parser.error(f"unrecognised: {' '.join(loose)}")
    args.overrides = extras
    return args


def parser() -> argparse.ArgumentParser:
    """The whole surface; a test holds it frozen."""
    top = Parser(prog="mmtrain", description="Train adapters on frozen backbones, and make video with them.")
    top.add_argument("--trace", action="store_true", help="show the stack trace of a mistake")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add(verbs)
    return top
