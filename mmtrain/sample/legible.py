"""Text in the letters of the font that Pillow brings, which has few beyond ASCII and draws a box for each other."""

import unicodedata
from functools import cache

from PIL import ImageFont

_FORMS = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "×": "x", "„": '"'}  # those that do not come apart


def legible(text: str) -> str:
    """The text with accents taken off letters that the font has not with them, a hyphen for a dash, and a question mark
    for what it has in no form."""
    return "".join(letter if _drawn(letter) else _instead(letter) for letter in text)


def _instead(letter: str) -> str:
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    if plain and all(map(_drawn, plain)):
        return plain
    return "-" if unicodedata.category(letter) == "Pd" else _FORMS.get(letter, "?")


@cache
def _drawn(letter: str) -> bool:
    font = ImageFont.load_default(16)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
