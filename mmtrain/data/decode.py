"""A sample's bytes to frames and captions: images, clips, cached encoder outputs, and MP4 both ways.

Whatever a file may hold, it is bounded before it is decoded, and nothing here can run code: pickles have no decoder.
What cannot be decoded raises `BadSample`; counting and replacing such samples is `source.py`.
"""

import io
import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import safetensors
import safetensors.torch
import torch
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream
from PIL import Image, ImageOps
from torch import Tensor

from mmtrain.batch import Sample
from mmtrain.data.facts import ENCODED, MEDIA, ORIENTATION, TURNED, VIDEOS
from mmtrain.errors import UserError

MAX_PIXELS = 64 << 20  # of one frame; asked of the header, before anything is unpacked
MAX_CLIP_PIXELS = 1 << 30  # of all frames that a sample keeps (3 GiB of bytes)
MAX_FRAMES = 100_000  # of a whole clip
MAX_FPS = 1000.0
IMAGE_FPS = 25.0  # what a still image or a clip without a rate is taken to have

_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT  # default: 1 level too dark

_ADDRESS = re.compile(r" <\S+ object at 0x[0-9a-f]+>")


class BadSample(Exception):
    """A sample that does not decode, now or ever: the text is the reason, ``kind`` a few words to count it by."""

    def __init__(self, why: str, kind: str = "does not decode") -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True)
class Look:
    """Which frames of a sample are wanted, and how large.

    Args:
        num_frames: frames to keep, or None for all. A still image has one.
        stride: every how many frames of the clip one is kept; the rate of what is kept falls by as much.
        size: (width, height) in pixels of what is cut from the middle after the frame is resized to cover it; None
            keeps the frames as they are.
        fps: frames per second that the clip is first brought to, by the frame nearest to each wanted time (the earlier
            of two as near); a slower clip repeats frames. None keeps the clip's own.
    """

    num_frames: int | None = None
    stride: int = 1
    size: tuple[int, int] | None = None
    fps: float | None = None

    def window(self, times: np.ndarray, draw: float) -> list[int]:
        """The frames to keep, rising, of a clip whose frames are shown at these times.

        Args:
            times: seconds, float64 ``[t]``, rising.
            draw: in [0, 1), chooses where the window starts.

        Raises:
            BadSample: if the clip is too short, or too long to be read.
        """
        total = len(times)
        if total > MAX_FRAMES:
            raise BadSample(f"the clip has {total} frames; at most {MAX_FRAMES} are read", "too large")
        if self.fps is not None and total:
            return self._nearest(times, draw)
        wanted = -(-total // self.stride) if self.num_frames is None else self.num_frames
        span = (wanted - 1) * self.stride + 1
        if total < span or not total:
            apart = f", {self.stride} apart," if self.stride > 1 else ""
            raise BadSample(f"the clip has {total} frames and {wanted}{apart} were wanted", "too short")
        start = int(draw * (total - span + 1))
        return list(range(start, start + span, self.stride))

    def _nearest(self, times: np.ndarray, draw: float) -> list[int]:
        assert self.fps is not None
        step, lasts = self.stride / self.fps, float(times[-1] - times[0]) + 1e-6  # seconds; pts are rounded
        wanted = int(lasts / step) + 1 if self.num_frames is None else self.num_frames
        if wanted > MAX_FRAMES:
            raise BadSample(f"{wanted} frames at {self.fps:g} a second; at most {MAX_FRAMES} are read", "too large")
        span = (wanted - 1) * step
        if span > lasts:
            came = f"the clip lasts {lasts:.3f} s to its last frame and {wanted}, {step:.3f} s apart, were wanted"
            raise BadSample(came, "too short")
        starts = int(np.searchsorted(times, times[0] + lasts - span, side="right"))
        at = times[int(draw * starts)] + np.arange(wanted) * step
        nearest = np.searchsorted((times[1:] + times[:-1]) / 2, at - 1e-6)
        return nearest.tolist()

    def rate(self, fps: float) -> float:
        """Frames per second of what is kept of a clip of that many."""
        return (self.fps or fps) / self.stride

    def place(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
        """An RGB image → uint8 ``[h w c]``, a grey one → ``[h w]``, resized and cut."""
        if self.size is not None and image.size != self.size:
            image = ImageOps.fit(image, self.size, resample)
        return np.asarray(image)


def decode(key: str, members: Mapping[str, bytes], look: Look, draw: float = 0.5) -> Sample:
    """A sample of pixels from its members (suffix → bytes).

    Args:
        draw: in [0, 1), where the window of frames starts.

    Raises:
        BadSample: with the reason, for anything in the bytes that does not decode.
    """
    suffix = next(s for s in members if s in MEDIA)
    facts = _facts(members)
    with reasons(suffix):
        payload = members[suffix]
        frames, fps = _video(payload, look, draw) if suffix in VIDEOS else _image(payload, look, draw, facts)
        captions = captions_of(members)
    return Sample(key, frames, fps, captions, facts.get("truth", facts) or None)


@dataclass(frozen=True)
class Probe:
    """What a whole pass over an image or a clip found."""

    width: int  # pixels, images as EXIF turns them
    height: int
    num_frames: int
    fps: float


def probe(suffix: str, members: Mapping[str, bytes]) -> Probe:
    """Unpacks every frame of an image or a clip, keeping none. Raises BadSample if any of it does not decode."""
    with reasons(suffix):
        if suffix in VIDEOS:
            return _probe_video(members[suffix])
        frames, fps = _image(members[suffix], Look(), 0.0, _facts(members))
        return Probe(frames.shape[2], frames.shape[1], len(frames), fps)


def _probe_video(payload: bytes) -> Probe:
    with av.open(io.BytesIO(payload), "r", metadata_errors="replace") as container:
        stream = _video_stream(container)
        expected = _Shown.of(container, stream).count
        found = sum(1 for _ in container.decode(stream))
        if found < expected or not found:
            raise BadSample(f"the clip ends early: {found} of {expected} frames")
        rate = stream.average_rate or stream.guessed_rate
        return Probe(stream.codec_context.width, stream.codec_context.height, found, float(rate or IMAGE_FPS))


def decode_encoded(members: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Encoder outputs of one sample by name, without batch axis. Raises BadSample, also for values not finite."""
    with reasons(ENCODED[0]):
        tensors = safetensors.torch.load(members[ENCODED[0]])
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _finite(tensor):
            raise BadSample(f"the encoding {name!r} holds values that are not finite", "not finite")
    return tensors


def _finite(tensor: Tensor) -> bool:
    """A sum that is finite has no term that is not, and is quicker than looking at each; a sum may overflow."""
    return math.isfinite(tensor.float().sum().item()) or bool(torch.isfinite(tensor).all())


def captions_of(members: Mapping[str, bytes]) -> tuple[str, ...]:
    """The captions of a sample: the lines of its .txt that hold anything."""
    lines = members.get("txt", b"").decode().split("\n")
    return tuple(line.strip() for line in lines if line.strip())


@contextmanager
def reasons(suffix: str) -> Iterator[None]:
    """Turns what the decoders raise into BadSample: damaged bytes make them raise anything, TypeError among it."""
    try:
        yield
    except (BadSample, MemoryError):
        raise
    except Image.DecompressionBombError as why:
        raise BadSample(f"the .{suffix} is too large to decode ({why})", "too large") from why
    except Exception as why:
        text = _ADDRESS.sub("", str(why))  # the same sample gives the same words on every run
        raise BadSample(f"the .{suffix} does not decode ({type(why).__name__}: {text})") from why


def _facts(members: Mapping[str, bytes]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    with reasons("json"):
        facts = json.loads(members["json"])
    if not isinstance(facts, dict):
        raise BadSample("the .json is not an object")
    for name in ("fps", "num_frames"):
        if name in facts and not (isinstance(facts[name], int | float) and 0 < facts[name] <= MAX_FRAMES):
            raise BadSample(f"the .json's {name} is {facts[name]!r}")
    return facts


def bound(width: int, height: int, frames: int = 1) -> None:
    """Raises BadSample for more pixels than are unpacked."""
    if width * height > MAX_PIXELS or width * height * frames > MAX_CLIP_PIXELS:
        came = f"{frames} frames of {width} x {height} pixels are too large to decode (an image bomb?)"
        raise BadSample(came, "too large")


def _image(payload: bytes, look: Look, draw: float, facts: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """A still or an animated WebP; frames uint8 ``[t h w c]`` and frames per second."""
    image = Image.open(io.BytesIO(payload), formats=("JPEG", "PNG", "WEBP"))
    bound(*image.size)
    stored = getattr(image, "n_frames", 1)
    if image.format != "WEBP" or (stored == 1 and "num_frames" not in facts):
        look.window(np.zeros(1), draw)
        if look.size is not None:
            turned = image.getexif().get(ORIENTATION) in TURNED
            image.draft(None, look.size[::-1] if turned else look.size)  # JPEG: unpacked at the nearest larger eighth
        return look.place(to_rgb(image))[None], IMAGE_FPS
    shown, fps = _shown(image, facts)
    wanted = look.window(np.arange(len(shown)) / fps, draw)
    bound(*image.size, frames=len(wanted))
    needed = {shown[t] for t in wanted}
    placed = {}
    for number in range(max(needed) + 1):  # an animation is unpacked from its start
        image.seek(number)
        if number in needed:
            placed[number] = look.place(to_rgb(image))
    return np.stack([placed[shown[t]] for t in wanted]), look.rate(fps)


def _shown(image: Image.Image, facts: Mapping[str, Any]) -> tuple[list[int], float]:
    """Which stored frame is shown at each frame of the clip, and the rate: the format merges equal neighbours into a
    longer one. Without a stated rate, the shortest frame gives it."""
    stored, total = getattr(image, "n_frames", 1), int(facts.get("num_frames", 0))
    fps = float(facts.get("fps", 0))
    if fps and stored in (1, total):
        return (list(range(stored)) if stored == total else [0] * total), fps
    durations = []
    for number in range(stored):
        image.seek(number)
        image.load()
        durations.append(image.info.get("duration") or 1000 / IMAGE_FPS)  # milliseconds
    fps = fps or 1000 / min(durations)
    count = total or round(sum(durations) * fps / 1000)
    if count > MAX_FRAMES:
        raise BadSample(f"more than {MAX_FRAMES} frames", "too large")
    middles = (np.arange(count) + 0.5) * 1000 / fps
    return np.minimum(np.searchsorted(np.cumsum(durations), middles), stored - 1).tolist(), fps


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: turned as EXIF says, transparency on white, 16 bits scaled to 8, CMYK converted."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadSample("pixels outside 16 bits")
        image = Image.fromarray(np.round(deep / 257).astype(np.uint8))
    elif image.mode == "F":
        raise BadSample("floating-point pixels, whose range is unknown")
    elif image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema() == (255, 255):  # clips are unpacked with a full alpha plane
            return layers.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _video(payload: bytes, look: Look, draw: float) -> tuple[np.ndarray, float]:
    """An MP4 or WebM; frames uint8 ``[t h w c]`` and frames per second."""
    with av.open(io.BytesIO(payload), "r", metadata_errors="replace") as container:
        stream = _video_stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or IMAGE_FPS)
        shown = _Shown.of(container, stream)
        wanted = look.window(shown.times(stream, rate), draw)
        bound(stream.codec_context.width, stream.codec_context.height, frames=len(wanted))
        kept = _kept(container, stream, shown, set(wanted), look)
    if len(kept) < len(set(wanted)):
        came = f"the clip ends early: {len(kept)} of {len(set(wanted))} frames from frame {wanted[0]} on"
        raise BadSample(came)
    return np.stack([kept[number] for number in wanted]), look.rate(rate)


@dataclass(frozen=True)
class _Shown:
    """What the packets tell of a stream's frames, in the order of showing, without unpacking any."""

    count: int
    pts: list[int] | None  # in the stream's time base; None if some are missing or equal
    keyframes: list[int]  # their pts, rising

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream) -> "_Shown":
        """Reads every packet; the container is left at its start."""
        pts: list[int | None] = []
        keyframes: list[int] = []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                pts.append(packet.pts)
            if packet.size and packet.is_keyframe and packet.pts is not None:
                keyframes.append(packet.pts)
        container.seek(0, stream=stream)
        known = sorted({p for p in pts if p is not None})
        return cls(len(pts), known if len(known) == len(pts) else None, sorted(keyframes))

    def times(self, stream: VideoStream, rate: float) -> np.ndarray:
        """Seconds at which the frames are shown, float64 ``[t]``."""
        if self.pts is None or stream.time_base is None:
            return np.arange(self.count) / rate
        return np.array(self.pts, np.float64) * float(stream.time_base)


def _kept(
    container: InputContainer, stream: VideoStream, shown: _Shown, wanted: set[int], look: Look
) -> dict[int, np.ndarray]:
    """The wanted frames by number, unpacked from the last keyframe before them; from the start where that fails."""
    if shown.pts is not None:
        place: dict[int | None, int] = {pts: number for number, pts in enumerate(shown.pts) if number in wanted}
        before = [pts for pts in shown.keyframes if pts <= shown.pts[min(wanted)]]
        if len(before) > 1:
            container.seek(before[-1], stream=stream)
            kept = _collect(((place.get(f.pts), f) for f in container.decode(stream)), wanted, look)
            if len(kept) == len(wanted):
                return kept
            container.seek(0, stream=stream)
    return _collect(enumerate(container.decode(stream)), wanted, look)


def _collect(frames: Iterable[tuple[int | None, av.VideoFrame]], wanted: set[int], look: Look) -> dict[int, np.ndarray]:
    """Ends with the last frame that is wanted."""
    kept: dict[int, np.ndarray] = {}
    for number, frame in frames:
        if number in wanted:
            kept[number] = _turned(frame, look)
            if number == max(wanted):
                break
    return kept


def _video_stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise BadSample("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BadSample("a video codec that is unknown")
    bound(stream.codec_context.width, stream.codec_context.height)
    return stream


def _turned(frame: av.VideoFrame, look: Look) -> np.ndarray:
    bound(frame.width, frame.height)
    pixels: np.ndarray = frame.to_ndarray(format="rgb24", interpolation=_EXACT)
    if frame.rotation % 360:
        pixels = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return look.place(Image.fromarray(pixels)) if look.size is not None else pixels


def encode_mp4(frames: np.ndarray, fps: float, crf: int = 16, metadata: Mapping[str, str] | None = None) -> bytes:
    """uint8 ``[t h w c]`` → H.264 MP4 (yuv420p, BT.709, index in front). Lossy: colour has half the resolution.

    ``metadata`` are tags of any names that the file carries, readable by ffprobe and PyAV.

    Raises:
        UserError: for an odd height or width, which yuv420p cannot hold.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise UserError("MP4", f"{width} x {height} pixels", "even width and height", "resize or crop the frames")
    with tempfile.TemporaryDirectory() as folder:  # moving the index to the front needs a real file
        path = Path(folder) / "clip.mp4"
        flags = "+faststart+use_metadata_tags" if metadata else "+faststart"
        with av.open(str(path), "w", options={"movflags": flags}) as container:
            container.metadata.update(metadata or {})
            rate = Fraction(fps).limit_denominator(1001)
            options = {"crf": str(crf), "threads": "1", "mbtree": "0"}  # with mbtree one clip gives several files
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = Colorspace.ITU709, 1, 1
            context.color_range = ColorRange.MPEG
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=_EXACT)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()
