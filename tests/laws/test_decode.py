"""Laws of decoding: colours are exact where the format is, images of every mode come as stated, clips are windows."""

import io
import struct
from collections.abc import Callable, Iterable
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mmtrain.data import decode as decoding
from mmtrain.data import world
from mmtrain.data.decode import BadSample, Look, decode, encode_mp4, probe
from mmtrain.data.shards import encode_webp


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def frames_of(suffix: str, payload: bytes, look: Look | None = None, draw: float = 0.5) -> np.ndarray:
    return decode("k", {suffix: payload}, look or Look(), draw).frames


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return world.render(world.scene(0, "train", 3), num_frames=20, side=128)


@pytest.fixture(scope="module")
def mp4(clip: np.ndarray) -> bytes:
    return encode_mp4(clip, 25)


def test_mp4_keeps_colours(clip: np.ndarray, mp4: bytes) -> None:
    sample = decode("k", {"mp4": mp4, "txt": b"one\n\n two \r\n"}, Look())
    assert sample.fps == 25
    assert sample.captions == ("one", "two")
    assert sample.frames.shape == clip.shape
    error = sample.frames.astype(int) - clip
    assert abs(error.mean((0, 1, 2))).max() < 0.3  # levels: no shift of a channel
    assert abs(error).mean() < 1.0


@pytest.mark.parametrize("level", [0, 16, 128, 235, 255])
def test_mp4_keeps_grey_levels(level: int) -> None:
    grey = np.full((4, 32, 32, 3), level, np.uint8)
    assert abs(frames_of("mp4", encode_mp4(grey, 25)).astype(int) - level).max() <= 1


@pytest.mark.parametrize("fps", [8, 23.976, 25, 30, 60])
def test_mp4_keeps_the_rate(clip: np.ndarray, fps: float) -> None:
    assert decode("k", {"mp4": encode_mp4(clip[:4], fps)}, Look()).fps == pytest.approx(fps, rel=1e-4)


def test_mp4_has_its_index_in_front(mp4: bytes) -> None:
    assert 0 < mp4.find(b"moov") < mp4.find(b"mdat")


TURNS = {  # the matrix of a track's header, as phones write it, and what undoes it
    "clockwise": ((0, 1, 0, -1, 0, 0, 0, 0, 1), -1),
    "half": ((-1, 0, 0, 0, -1, 0, 0, 0, 1), 2),
    "counter-clockwise": ((0, -1, 0, 1, 0, 0, 0, 0, 1), 1),
}


@pytest.mark.parametrize("turn", TURNS)
def test_turned_clips_are_turned_back(turn: str) -> None:
    upright = np.repeat(pattern(64, 32)[None], 3, axis=0)
    matrix, quarter_turns = TURNS[turn]
    payload = bytearray(encode_mp4(upright, 25))
    at = payload.find(b"tkhd") + 44
    payload[at : at + 36] = struct.pack(">9i", *(v << (30 if i % 3 == 2 else 16) for i, v in enumerate(matrix)))
    found, wanted = frames_of("mp4", bytes(payload)), np.rot90(upright, quarter_turns, (1, 2))
    assert found.shape == wanted.shape
    assert abs(found.astype(int) - wanted).mean() < 5


@pytest.mark.parametrize(("draw", "start"), [(0.0, 0), (0.5, 8), (0.999999, 15)])
@pytest.mark.parametrize("suffix", ["mp4", "webp"])
def test_a_window_of_frames(clip: np.ndarray, mp4: bytes, suffix: str, draw: float, start: int) -> None:
    payload = mp4 if suffix == "mp4" else encode_webp(clip, 25)
    whole = frames_of(suffix, payload)
    assert len(whole) == 20
    part = frames_of(suffix, payload, Look(num_frames=5), draw)
    assert np.array_equal(part, whole[start : start + 5])


@pytest.mark.parametrize(
    ("fps", "stride", "num_frames", "draw", "frames"),
    [
        (25, 1, 5, 0.0, [0, 1, 2, 3, 4]),  # the clip's own
        (12.5, 1, 4, 0.0, [0, 2, 4, 6]),
        (10, 1, 5, 0.0, [0, 2, 5, 7, 10]),  # wanted at 0, 2.5, 5, 7.5, 10: the earlier of two as near
        (10, 1, 8, 0.99, [1, 3, 6, 8, 11, 13, 16, 18]),
        (10, 2, 3, 0.0, [0, 5, 10]),
        (50, 1, 6, 0.0, [0, 0, 1, 1, 2, 2]),  # a slower clip repeats frames
        (5, 1, None, 0.0, [0, 5, 10, 15]),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "webp"])
def test_another_rate_takes_the_nearest_frames(
    clip: np.ndarray,
    mp4: bytes,
    suffix: str,
    fps: float,
    stride: int,
    num_frames: int | None,
    draw: float,
    frames: list[int],
) -> None:
    payload = mp4 if suffix == "mp4" else encode_webp(clip, 25)
    whole = frames_of(suffix, payload)
    found = decode("k", {suffix: payload}, Look(num_frames, stride, fps=fps), draw)
    assert np.array_equal(found.frames, whole[frames])
    assert found.fps == fps / stride


def test_another_rate_goes_by_the_times_of_the_frames_not_their_numbers() -> None:
    times = np.array([0, 0.1, 0.2, 1.0, 1.1, 1.2])  # a clip with a pause
    assert Look(num_frames=4, fps=2.5).window(times, 0.0) == [0, 2, 3, 5]
    with pytest.raises(BadSample, match="lasts 1.200 s .* 5, 0.400 s apart"):
        Look(num_frames=5, fps=2.5).window(times, 0.0)


def long_mp4(options: dict[str, str]) -> bytes:
    """120 frames of moving noise and a keyframe every 12, with B-frames, as cameras and platforms write them."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"threads": "1", "crf": "20", **options})
        stream.width = stream.height = 64
        for t in range(120):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * t, 1), format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize("bframes", ["0", "3"])
@pytest.mark.parametrize("open_gop", ["0", "1"])
def test_a_window_late_in_a_long_clip_is_unpacked_from_its_keyframe_and_is_exact(
    bframes: str, open_gop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"g": "12", "keyint_min": "12", "bf": bframes, "x264-params": f"open-gop={open_gop}:scenecut=0"}
    payload = long_mp4(options)
    whole = frames_of("mp4", payload)
    assert len(whole) == 120
    assert len({frame.tobytes() for frame in whole}) > 20
    unpacked: list[int] = []
    collect = decoding._collect

    def counted(frames: Iterable[Any], *others: Any) -> Any:
        return collect((unpacked.append(1) or pair for pair in frames), *others)  # type: ignore[func-returns-value]

    monkeypatch.setattr(decoding, "_collect", counted)
    for start in range(117):
        unpacked.clear()
        part = frames_of("mp4", payload, Look(num_frames=4), (start + 0.5) / 117)
        assert np.array_equal(part, whole[start : start + 4]), start
        assert len(unpacked) <= 12 + 4 + 8, start


def test_too_long_a_window_is_refused(mp4: bytes) -> None:
    with pytest.raises(BadSample, match="20 frames and 21 were wanted"):
        frames_of("mp4", mp4, Look(num_frames=21))


def test_webp_clips_are_exact_and_equal_neighbours_are_spread(clip: np.ndarray) -> None:
    held = clip[[0, 0, 0, 5, 6, 6, 7, 7]]
    for frames in (clip, held):
        assert np.array_equal(frames_of("webp", encode_webp(frames, 25)), frames)
        facts = b'{"fps": 25, "num_frames": %d}' % len(frames)
        found = decode("k", {"webp": encode_webp(frames, 25), "json": facts}, Look())
        assert np.array_equal(found.frames, frames)
        assert found.fps == 25
    frozen = clip[[0] * 7]
    found = decode("k", {"webp": encode_webp(frozen, 25), "json": b'{"fps": 25, "num_frames": 7}'}, Look(num_frames=6))
    assert np.array_equal(found.frames, frozen[:6])


def pattern(width: int = 48, height: int = 32) -> np.ndarray:
    """Left half red, right half blue; green grows downwards."""
    out = np.zeros((height, width, 3), np.uint8)
    out[:, : width // 2, 0] = 255
    out[:, width // 2 :, 2] = 255
    out[..., 1] = np.linspace(0, 250, height).astype(np.uint8)[:, None]
    return out


MODES: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "grey": (lambda: saved(Image.new("L", (9, 7), 90), "PNG"), (90, 90, 90)),
    "clear": (lambda: saved(Image.new("RGBA", (9, 7), (10, 20, 30, 0)), "PNG"), (255, 255, 255)),
    "half clear": (lambda: saved(Image.new("RGBA", (9, 7), (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
    "opaque": (lambda: saved(Image.new("RGBA", (9, 7), (10, 20, 30, 255)), "PNG"), (10, 20, 30)),
    "grey and alpha": (lambda: saved(Image.new("LA", (9, 7), (0, 0)), "PNG"), (255, 255, 255)),
    "16 bits": (lambda: saved(Image.fromarray(np.full((7, 9), 257 * 200, np.uint16)), "PNG"), (200, 200, 200)),
    "bitmap": (lambda: saved(Image.new("1", (9, 7), 1), "PNG"), (255, 255, 255)),
    "cmyk": (lambda: saved(Image.new("CMYK", (9, 7), (0, 255, 0, 0)), "JPEG", quality=100), (255, 0, 255)),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    make, colour = MODES[mode]
    found = frames_of("png", make())
    assert found.shape == (1, 7, 9, 3)
    assert found.dtype == np.uint8
    assert abs(found.astype(int) - colour).max() <= (2 if mode == "cmyk" else 0)  # a JPEG


def test_palettes_give_their_colours() -> None:
    image = Image.fromarray(pattern()).quantize(64)
    assert np.array_equal(frames_of("png", saved(image, "PNG"))[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns(turn: int) -> None:
    exif = Image.Exif()
    exif[0x112] = turn
    pixels = pattern()
    undone = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
    }
    undone |= {
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, 1),
    }
    found = frames_of("png", saved(Image.fromarray(pixels), "PNG", exif=exif))[0]
    assert np.array_equal(found, undone[turn](pixels))


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 48), (32, 32), (200, 33)])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_the_middle_is_kept(width: int, height: int, kind: str) -> None:
    payload = saved(Image.fromarray(pattern(width, height)), "PNG" if kind == "png" else "JPEG", quality=95)
    found = frames_of(kind, payload, Look(size=(16, 16)))[0].astype(int)
    assert found.shape == (16, 16, 3)
    assert found[8, 2, 0] > 200
    assert found[8, 13, 2] > 200  # red and blue meet in the middle
    assert abs(found[:, 2, 1] - np.linspace(0, 250, 16)).max() < 24 if height <= width else True


def test_a_large_jpeg_is_unpacked_small_with_little_loss() -> None:
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (512, 1)), np.tile(ramp[:, None], (1, 512)), np.full((512, 512), 99, np.uint8)], -1
    )
    image = Image.fromarray(pixels)
    found = frames_of("jpg", saved(image, "JPEG", quality=95), Look(size=(64, 64)))[0].astype(int)
    assert abs(found - np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))).mean() < 1.5


def test_probe_tells_what_is_there(clip: np.ndarray, mp4: bytes) -> None:
    found = probe("mp4", {"mp4": mp4})
    assert (found.width, found.height, found.num_frames, found.fps) == (128, 128, 20, 25)
    still = probe("png", {"png": saved(Image.new("RGB", (9, 7)), "PNG")})
    assert (still.width, still.height, still.num_frames) == (9, 7, 1)
    with pytest.raises(BadSample):
        probe("mp4", {"mp4": mp4[: len(mp4) * 2 // 3]})
