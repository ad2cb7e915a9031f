"""Clips as files of the format that is wanted, each marked as what it is: MP4, GIF, WebP or PNG frames.

Pixels to bytes of MP4 and PNG, and contact sheets, are `mp4.py`; what the marks mean, `provenance.py`.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mmtrain.sample.mp4 import FPS, placed, write_mp4, write_png
from mmtrain.sample.provenance import DESCRIPTION, Provenance, packed

Format = Literal["mp4", "gif", "webp", "png"]


@dataclass(frozen=True, kw_only=True)
class Files:
    """How clips become files.

    Attributes:
        format: of a clip; a picture is always a PNG.
        fps: frames a second of the file.
        repeat: how often each frame is shown; the rate is the file's, so that 2 takes twice as long.
        provenance: how they are marked.
    """

    format: Format = "mp4"
    fps: float = FPS
    repeat: int = 1
    provenance: Provenance = field(default_factory=Provenance)

    def write(self, clip: np.ndarray, stem: Path, *, identity: str, title: str, tags: Mapping[str, str]) -> list[Path]:
        """Write a clip uint8 ``[t h w c]``, marked and, where there is a signer, signed last.

        Args:
            clip: unmarked.
            stem: the file without its suffix; of PNG frames, a folder.
            identity: of what made it; the watermark stands for it.
            title: what it shows.
            tags: further metadata.

        Returns:
            The files.
        """
        shown = self.provenance.marked(clip, identity)
        told = {**self.provenance.tags(shown, identity), "title": title, **tags}
        shown = shown.repeat(self.repeat if len(clip) > 1 else 1, axis=0)
        write = _still if len(clip) == 1 else _WRITERS[self.format]
        files = write(shown, stem, self.fps, told)
        if self.provenance.signer is not None:
            for file in files:
                self.provenance.signer.sign(file, told, title)
        return files


def _mp4(clip: np.ndarray, stem: Path, fps: float, tags: Mapping[str, str]) -> list[Path]:
    return [write_mp4(clip, stem.with_name(f"{stem.name}.mp4"), fps=fps, metadata=tags)]


def _still(clip: np.ndarray, stem: Path, fps: float, tags: Mapping[str, str]) -> list[Path]:
    return [write_png(clip[0], stem.with_name(f"{stem.name}.png"), metadata=tags)]


def _frames(clip: np.ndarray, stem: Path, fps: float, tags: Mapping[str, str]) -> list[Path]:
    stem.mkdir()
    return [write_png(frame, stem / f"{t:04d}.png", metadata=tags) for t, frame in enumerate(clip)]


def _gif(clip: np.ndarray, stem: Path, fps: float, tags: Mapping[str, str]) -> list[Path]:
    """256 colours a frame, chosen for each; the format counts hundredths of a second."""
    frames = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in clip]
    how = {"duration": max(20, round(100 / fps) * 10), "loop": 0, "comment": packed(tags).encode()}
    return [_animated(frames, stem.with_name(f"{stem.name}.gif"), how)]


def _webp(clip: np.ndarray, stem: Path, fps: float, tags: Mapping[str, str]) -> list[Path]:
    exif = Image.Exif()
    exif[DESCRIPTION] = packed(tags)
    how = {"duration": round(1000 / fps), "loop": 0, "quality": 90, "method": 4, "exif": exif.tobytes()}
    return [_animated([Image.fromarray(frame) for frame in clip], stem.with_name(f"{stem.name}.webp"), how)]


def _animated(frames: list[Image.Image], path: Path, how: Mapping[str, object]) -> Path:
    payload = io.BytesIO()
    frames[0].save(payload, format=path.suffix[1:], save_all=True, append_images=frames[1:], **how)
    return placed(path, payload.getvalue())


_WRITERS: dict[Format, Callable[[np.ndarray, Path, float, Mapping[str, str]], list[Path]]] = {
    "mp4": _mp4,
    "gif": _gif,
    "webp": _webp,
    "png": _frames,
}
