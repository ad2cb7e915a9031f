"""Laws of the index: it says of each sample what decoding says, keeps it, and opens fast however large it is."""

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.data import large
from mmtrain.data.decode import encode_mp4, probe
from mmtrain.data.facts import MEDIA
from mmtrain.data.index import Index
from mmtrain.data.order import Order
from mmtrain.data.shards import ShardWriter, encode_webp
from mmtrain.errors import UserError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def saved(kind: str, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(noise(30, 40)).save(out, kind, exif=exif)
    return out.getvalue()


def clip(gop: int, count: int = 12) -> bytes:
    """An MP4 with B-frames and a keyframe at every ``gop``-th frame."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        options = {"g": str(gop), "keyint_min": str(gop), "sc_threshold": "0", "bf": "2", "x264-params": "open-gop=1"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for pixels in noise(count, 32, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


still_then_moving = noise(3, 16, 16)[[0, 0, 0, 1, 2, 2]]
KINDS = {
    "jpg": {"jpg": saved("JPEG")},
    "jpg turned": {"jpg": saved("JPEG", 6)},
    "png": {"png": saved("PNG")},
    "png turned": {"png": saved("PNG", 8)},
    "webp": {"webp": saved("WEBP")},
    "webp turned": {"webp": saved("WEBP", 5)},
    "animation": {"webp": encode_webp(still_then_moving, 25)},
    "animation, told": {"webp": encode_webp(still_then_moving, 25), "json": b'{"num_frames": 6, "fps": 24}'},
    "one frame, told": {"webp": encode_webp(still_then_moving[:1], 25), "json": b'{"num_frames": 7, "fps": 25}'},
    "mp4": {"mp4": encode_mp4(noise(5, 32, 48), 12.5)},
    "mp4, many keyframes": {"mp4": clip(4)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_says_what_decoding_says(tmp_path: Path, kind: str) -> None:
    members = {**KINDS[kind], "txt": b"a red chair\n\nchair\n"}
    with ShardWriter(tmp_path / "s", max_samples=9) as writer:
        writer.write("k", members)
    facts = Index.of(tmp_path / "s").facts[0]
    found = probe(next(s for s in members if s in MEDIA), members)
    assert (facts["width"], facts["height"], facts["num_frames"]) == (found.width, found.height, found.num_frames)
    assert facts["fps"] == (0 if found.num_frames == 1 else found.fps)
    assert (facts["captions"], facts["words"]) == (2, 3)
    assert facts["bytes"] == sum(map(len, members.values()))


def test_keyframes_are_numbered_as_shown(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=9) as writer:
        for key, members in (("a", {"mp4": clip(4)}), ("b", {"jpg": saved("JPEG")}), ("c", {"mp4": clip(5)})):
            writer.write(key, members)
    with ShardWriter(tmp_path / "t", max_samples=9) as writer:
        writer.write("d", {"mp4": clip(6)})
    index = Index.of(f"{tmp_path}/{{s,t}}/000000.tar")
    assert [index.keyframes(i).tolist() for i in range(4)] == [[0, 4, 8], [], [0, 5, 10], [0, 6]]


def test_a_damaged_medium_has_no_facts_and_no_veto(tmp_path: Path) -> None:
    bodies = {
        "cut": {"jpg": saved("JPEG")[:15]},
        "empty": {"mp4": b""},
        "lies": {"webp": encode_webp(still_then_moving, 25), "json": b'{"num_frames": 1e300, "fps": "x"}'},
        "vast": {"webp": saved("WEBP"), "json": b'{"num_frames": 1e12}'},
        "text": {"jpg": saved("JPEG"), "txt": b"\xff\xfe words"},
    }
    with ShardWriter(tmp_path / "s", max_samples=9) as writer:
        for key, members in bodies.items():
            writer.write(key, members)
    facts = Index.of(tmp_path / "s").facts
    assert facts["width"].tolist() == [0, 0, 0, 40, 40]
    assert facts["num_frames"].tolist()[3] == 2**32 - 1


def test_the_sidecar_keeps_everything(tmp_path: Path) -> None:
    for name, gops in (("000000", (2, 3)), ("000001", (4,))):
        with ShardWriter(tmp_path / name, max_samples=9) as writer:
            for gop in gops:
                writer.write(f"{name}/{gop}", {"mp4": clip(gop), f"{gop}.png": b"x", "txt": b"one two"})
        os.replace(tmp_path / name / "000000.tar", tmp_path / f"{name}.tar")
    fresh, kept = Index.of(tmp_path), Index.of(tmp_path)
    assert (tmp_path / "index.npz").is_file()
    assert fresh.keys == kept.keys == ["000000/2", "000000/3", "000001/4"]
    assert np.array_equal(fresh.facts, kept.facts)
    for i in range(3):
        assert fresh.members(i) == kept.members(i)
        assert np.array_equal(fresh.keyframes(i), kept.keyframes(i))


def test_workers_change_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=2) as writer:
        for i in range(6):
            writer.write(f"{i}", {"jpg": saved("JPEG"), "txt": b"x"})
    written = (tmp_path / "s" / "index.npz").read_bytes()
    (tmp_path / "s" / "index.npz").unlink()
    seen: list[tuple[int, int]] = []
    Index.of(tmp_path / "s", workers=2, progress=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "s" / "index.npz").read_bytes() == written
    assert len(seen) == 12  # members


def test_all_faulty_shards_are_named_at_once_and_the_sound_ones_kept(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=2) as writer:
        for i in range(6):
            writer.write(f"{i}", {"txt": b"x"})
    (tmp_path / "s" / "index.npz").unlink()
    for name in ("000000", "000002"):
        (tmp_path / "s" / f"{name}.tar").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        Index.of(tmp_path / "s")
    assert ["000000.tar" in line or "000002.tar" in line for line in str(caught.value).splitlines()] == [True, True]
    index, faults = Index.read(tmp_path / "s")
    assert (index.keys, len(faults)) == (["2", "3"], 2)


def test_verify_finds_what_size_and_time_hide(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=9) as writer:
        writer.write("k", {"txt": b"twelve bytes"})
    path = tmp_path / "s" / "000000.tar"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[515] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(Index.of(tmp_path / "s")) == 1
    with pytest.raises(UserError, match=r"changed since.*k\.txt"):
        Index.of(tmp_path / "s", verify=True)


def test_an_index_opens_without_reading_shards_and_any_position_is_at_hand(tmp_path: Path) -> None:
    """How long a million samples take is measured by `make bench-data`, on such an index."""
    where = large(tmp_path / "large", shards=30, samples=40)
    assert {path.stat().st_size for path in where.glob("*.tar")} == {0}
    index = Index.of(where)
    assert (len(index), index.media(require_captions=True)) == (1200, "frames")
    sample = Order(lengths=index.lengths, window=8, seed=0)[987_654_321]
    members = index.members(sample)
    assert list(members) == ["json", "mp4", "txt"]
    assert index.keys[sample] == members["mp4"].name.removesuffix(".mp4")
