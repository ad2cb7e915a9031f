"""One picture of an evaluation: a row to each prompt, frames of the base on the left, of the adapted on the right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmtrain.sample.legible import legible

_FRAMES = 5  # shown of each clip, evenly through its time
_HIGH = 72  # pixels of a frame on the sheet
_LEAST = 420  # pixels across, so that there is room for a prompt above pictures of one frame
_GAP, _LINE = 6, 20  # pixels between frames, and for a line of text
_PAPER, _INK, _FAINT = (250, 249, 247), (38, 38, 42), (120, 120, 126)


def sheet(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Image.Image:
    """The picture of prompts with their clips by name, each uint8 ``[t h w c]``, all of one shape."""
    names = list(rows[0][1])
    wide = round(_HIGH * rows[0][1][names[0]].shape[2] / rows[0][1][names[0]].shape[1])
    count = min(_FRAMES, len(rows[0][1][names[0]]))
    strip = max(count * wide + (count - 1) * 2, _LEAST // len(names))
    page = (len(names) * strip + (len(names) + 1) * 2 * _GAP, _LINE + _GAP + len(rows) * (_LINE + _HIGH + 2 * _GAP))
    image = Image.new("RGB", page, _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=13)
    lefts = [2 * _GAP + i * (strip + 2 * _GAP) for i in range(len(names))]
    for left, name in zip(lefts, names, strict=True):
        draw.text((left, _GAP), name, fill=_FAINT, font=font)
    for i, (prompt, clips) in enumerate(rows):
        top = _LINE + _GAP + i * (_LINE + _HIGH + 2 * _GAP)
        draw.text((lefts[0], top), _fitting(prompt, draw, font, page[0] - 4 * _GAP), fill=_INK, font=font)
        for left, name in zip(lefts, names, strict=True):
            for j, frame in enumerate(_chosen(clips[name])):
                small = Image.fromarray(frame).resize((wide, _HIGH), Image.Resampling.LANCZOS)
                image.paste(small, (left + j * (wide + 2), top + _LINE))
    return image


def _chosen(clip: np.ndarray) -> np.ndarray:
    return clip[np.linspace(0, len(clip) - 1, min(_FRAMES, len(clip))).round().astype(int)]


def _fitting(text: str, draw: ImageDraw.ImageDraw, font: Any, room: int) -> str:
    """The text on one line, cut to the room."""
    line = legible(" ".join(text.split()))
    while draw.textlength(line, font=font) > room:
        line = line[:-2].rstrip("…") + "…"
    return line
