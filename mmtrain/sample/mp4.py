"""Clips as files: an MP4 that carries where it came from, and contact sheets. Encoding itself is `data/decode.py`."""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mmtrain.data.decode import encode_mp4
from mmtrain.sample.legible import legible

FPS = 25
PAPER, INK, FAINT = (250, 249, 246), (32, 33, 36), (138, 138, 134)
MARGIN, GAP, LINE = 28, 6, 19  # pixels
TALL = 112  # a frame lower than this is enlarged; stills, below twice this
MAX_FRAMES, STILLS_IN_A_ROW, SHEET_WIDTH = 8, 4, 2000


def write_mp4(frames: np.ndarray, path: Path, *, fps: float = FPS, metadata: Mapping[str, str] | None = None) -> Path:
    """Write uint8 ``[t h w c]`` as H.264 (yuv420p, BT.709, index in front), in one piece: whole, or not there.

    Raises:
        UserError: an odd height or width.
    """
    return placed(path, encode_mp4(frames, fps, metadata=metadata))


def write_png(image: np.ndarray, path: Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write uint8 ``[h w c]`` as PNG, in one piece, with metadata as text chunks."""
    text = PngInfo()
    for name, value in (metadata or {}).items():
        text.add_itxt(name, value)
    payload = io.BytesIO()
    Image.fromarray(image).save(payload, format="PNG", pnginfo=text)
    return placed(path, payload.getvalue())


def contact_sheet(
    clips: Sequence[np.ndarray],
    labels: Sequence[str],
    path: Path,
    *,
    title: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A PNG of all clips at a glance: each one's label above up to eight of its frames, the first and last among them.

    Clips of one frame stand side by side, four in a row, labels below; small frames are enlarged without smoothing.

    Args:
        clips: uint8 ``[t h w c]`` each; sizes may differ.
        labels: one per clip; long ones are wrapped.
        title: above all.
        metadata: as text chunks.
    """
    across = STILLS_IN_A_ROW if all(len(clip) == 1 for clip in clips) else 1
    cells = [_cell(clip, label) for clip, label in zip(clips, labels, strict=True)]
    rows = [cells[i : i + across] for i in range(0, len(cells), across)]
    top = MARGIN + (2 * LINE if title else 0)
    column = max(cell.width for cell in cells)
    width = 2 * MARGIN + min(across, len(cells)) * (column + MARGIN) - MARGIN
    height = top + sum(max(cell.height for cell in row) + MARGIN for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    if title:
        ImageDraw.Draw(sheet).text((MARGIN, MARGIN - 4), legible(title), fill=INK, font=_font(18))
    for row in rows:
        for place, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + place * (column + MARGIN), top))
        top += max(cell.height for cell in row) + MARGIN
    return write_png(np.asarray(sheet), path, metadata=metadata)


def _cell(clip: np.ndarray, label: str) -> Image.Image:
    if len(clip) == 1:
        return _still(Image.fromarray(clip[0]), label)
    shown = np.linspace(0, len(clip) - 1, min(len(clip), MAX_FRAMES)).round().astype(int)
    frames = [_fitted(Image.fromarray(clip[t]), len(shown), TALL) for t in shown]
    width = sum(frame.width for frame in frames) + GAP * (len(frames) - 1)
    lines = _wrapped(label, width)
    top = len(lines) * LINE + GAP
    cell = Image.new("RGB", (width, top + frames[0].height + LINE), PAPER)
    draw = ImageDraw.Draw(cell)
    _write(draw, lines, 0)
    for place, (t, frame) in enumerate(zip(shown, frames, strict=True)):
        left = place * (frame.width + GAP)
        cell.paste(frame, (left, top))
        draw.text((left, top + frame.height + 2), f"{t + 1}", fill=FAINT, font=_font(11))
    return cell


def _still(image: Image.Image, label: str) -> Image.Image:
    image = _fitted(image, STILLS_IN_A_ROW, 2 * TALL)
    lines = _wrapped(label, image.width)
    cell = Image.new("RGB", (image.width, image.height + GAP + len(lines) * LINE), PAPER)
    cell.paste(image, (0, 0))
    _write(ImageDraw.Draw(cell), lines, image.height + GAP)
    return cell


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], top: int) -> None:
    for number, line in enumerate(lines):
        draw.text((0, top + number * LINE), line, fill=INK, font=_font(14))


def _fitted(frame: Image.Image, beside: int, tall: int) -> Image.Image:
    """Small frames enlarged by a whole number; frames so large that the sheet would be huge, reduced."""
    room = SHEET_WIDTH // beside
    if frame.width > room:
        return frame.resize((room, max(1, round(frame.height * room / frame.width))), Image.Resampling.LANCZOS)
    times = min(-(-tall // frame.height), room // frame.width)
    return frame.resize((frame.width * times, frame.height * times), Image.Resampling.NEAREST)


def _wrapped(label: str, width: int) -> list[str]:
    """At most three lines of at most ``width`` pixels, broken between words where possible."""
    font, label = _font(14), legible(label)
    letters = max(8, int(len(label) * width / max(1.0, font.getlength(label))))
    while True:
        lines = textwrap.wrap(" ".join(label.split()), letters, max_lines=3, placeholder=" …") or [""]
        if letters <= 8 or all(font.getlength(line) <= width for line in lines):
            return lines
        letters -= 1


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def placed(path: Path, payload: bytes) -> Path:
    """Write a file in one piece: whole, or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(payload)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
