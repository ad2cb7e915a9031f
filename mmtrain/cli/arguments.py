"""What all verbs' parsers are made of: complaints as UserErrors, how a verb is added, and the types of numbers.

Help must be instant: nothing here or in the verbs' files imports what is slow before a verb runs.
"""

import argparse
import difflib
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from mmtrain.errors import UserError

Verb = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors like any other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        where = self.prog.removeprefix("mmtrain").strip() or "command line"
        raise UserError(where, message, f"what `{self.prog} --help` lists", _fix(message) or "correct it")


def _fix(message: str) -> str | None:
    """A suggestion for argparse's "invalid choice: 'trian' (choose from 'check', 'train')"."""
    came, *known = re.findall(r"'([^']+)'", message) if "invalid choice" in message else ("",)
    close = difflib.get_close_matches(came, known, n=1)
    return f"perhaps you meant {close[0]}" if close else None


def add_verb(verbs: Any, name: str, run: Verb, text: str, overrides: bool = False) -> argparse.ArgumentParser:
    usage = "%(prog)s RECIPE [key=value ...] [options]" if overrides else None
    added: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, usage=usage)
    added.set_defaults(run=run, parser=added, takes_overrides=overrides)
    return added


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number below 2^63")
    return int(text)


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def bits(text: str) -> int | str:
    if text not in ("auto", "32", "16", "8"):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, 32, 16 or 8")
    return text if text == "auto" else int(text)


def add_bits(verb: argparse.ArgumentParser) -> None:
    text = "which the network is held in (default 32): 16 halves its memory, 8 quarters it; auto: 16 where faster"
    verb.add_argument("--bits", type=bits, default=32, metavar="auto|32|16|8", help=text)


def pair(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2 or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not two names with a comma between")
    return names[0], names[1]


def counts(text: str) -> tuple[int, int]:
    first, second = pair(text)
    return count(first), count(second)


def renames(text: str) -> dict[str, str]:
    parts = [part.split("=") for part in text.split(",")]
    if any(len(part) != 2 or not all(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not WORD=NAME,WORD=NAME")
    return {word.strip(): name.strip() for word, name in parts}


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def shares(text: str) -> dict[str, float]:
    parts = [part.split("=") for part in text.split(",")]
    if any(len(part) != 2 or not all(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE,NAME=SHARE")
    return {name.strip(): share(value) for name, value in parts}
