"""What the headers of a sample's members say: size, length, rate, keyframes, captions. No image is unpacked.

A fact that a header does not tell is 0: an index must not stop at a damaged image, which is for `decode.py` to refuse.
"""

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from PIL import Image

IMAGES = ("jpg", "jpeg", "png", "webp")
VIDEOS = ("mp4", "webm")
ENCODED = ("safetensors",)
MEDIA = (*IMAGES, *VIDEOS, *ENCODED)

FACTS = np.dtype(
    [
        ("width", "<u4"),  # pixels, as shown: turned as EXIF or the container says
        ("height", "<u4"),
        ("num_frames", "<u4"),  # a still has 1
        ("fps", "<f8"),  # a still has none: 0
        ("captions", "<u4"),
        ("words", "<u4"),  # of the longest caption
        ("bytes", "<u8"),  # of all members
    ]
)
"""One row a sample. 0 is "its header does not say"; of encoder outputs, what the pixels were that they are of."""

_MOST = (1 << 32) - 1
ORIENTATION = 0x112  # EXIF
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MAX_PIXELS = 64 << 20  # a larger frame is not unpacked to see how it is turned
_MILLISECONDS = 40  # of a frame whose animation states no duration


def measure(members: Mapping[str, bytes]) -> tuple[tuple[float, ...], list[int]]:
    """A row of `FACTS` and the clip's keyframes, as frame numbers; of a sample's members (suffix → bytes)."""
    lines = [line.split() for line in members.get("txt", b"").decode(errors="replace").split("\n") if line.strip()]
    words = max((len(line) for line in lines), default=0)
    medium = next((s for s in members if s in MEDIA), None)
    shape: tuple[float, ...] = (0, 0, 0, 0.0)
    keyframes: list[int] = []
    try:
        if medium in VIDEOS:
            shape, keyframes = _clip(members[medium])
        elif medium in ENCODED:
            shape = encoded_from(members[medium])
        elif medium:
            shape = _image(members[medium], _stated(members))
    except Exception:  # damaged bytes make the libraries raise anything
        pass
    width, height, num_frames = (min(max(int(n), 0), _MOST) for n in shape[:3])
    size = sum(len(data) for data in members.values())
    return (width, height, num_frames, shape[3], len(lines), words, size), keyframes


def encoding_of(frames: tuple[int, ...], fps: float) -> dict[str, str]:
    """What a file of encoder outputs says in its header of the frames ``[t c h w]`` that they are of.

    One entry: the library writes several in an order of chance, and the same input must give the same bytes.
    """
    num_frames, _, height, width = frames
    return {"pixels": json.dumps([width, height, num_frames, fps])}


def encoded_from(payload: bytes) -> tuple[int, int, int, float]:
    """Width, height, frames and rate, as `encoding_of` wrote them into a safetensors header; 0 where it did not."""
    size = int.from_bytes(payload[:8], "little")
    told = json.loads(payload[8 : 8 + size]).get("__metadata__", {}).get("pixels", "[0, 0, 0, 0]")
    width, height, num_frames, fps = json.loads(told)
    return int(width), int(height), int(num_frames), float(fps)


def _stated(members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        facts = json.loads(members.get("json", b"{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _image(payload: bytes, stated: Mapping[str, Any]) -> tuple[int, int, int, float]:
    """Width, height, frames and rate; an animated WebP may tell the last two in the json beside it."""
    image = Image.open(io.BytesIO(payload), formats=("JPEG", "PNG", "WEBP"))
    width, height = image.size
    exif = Image.Exif()
    if "exif" in image.info:
        exif.load(image.info["exif"])
    if exif.get(ORIENTATION) in TURNED:
        width, height = height, width
    durations = _durations(payload) if image.format == "WEBP" else []
    if image.format != "WEBP" or (len(durations) <= 1 and "num_frames" not in stated):
        return width, height, 1, 0.0
    fps = float(stated.get("fps", 0)) or 1000 / min(durations or [_MILLISECONDS])
    return width, height, int(stated.get("num_frames", 0)) or round(sum(durations) * fps / 1000), fps


def _durations(webp: bytes) -> list[int]:
    """Milliseconds of each stored frame: the ANMF chunks of the container (RFC 9649, section 2.7.1.1)."""
    found, at = [], 12
    while at + 8 <= len(webp):
        size = int.from_bytes(webp[at + 4 : at + 8], "little")
        if webp[at : at + 4] == b"ANMF":
            found.append(int.from_bytes(webp[at + 20 : at + 23], "little") or _MILLISECONDS)
        at += 8 + size + size % 2
    return found


def _clip(payload: bytes) -> tuple[tuple[int, int, int, float], list[int]]:
    """Width, height, frames and rate, and the keyframes' numbers in the order of showing."""
    with av.open(io.BytesIO(payload), "r", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
        if all(pts is not None for pts, _ in packets):
            packets.sort(key=lambda row: row[0])
        rate = stream.average_rate or stream.guessed_rate
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height <= _MAX_PIXELS:
            container.seek(0, stream=stream)
            first = next(container.decode(stream), None)
            if first is not None and round(first.rotation / 90) % 2:
                width, height = height, width
    fps = float(rate) if rate and math.isfinite(rate) else 0.0
    return (width, height, len(packets), fps), [n for n, (_, is_key) in enumerate(packets) if is_key]
