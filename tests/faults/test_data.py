"""Whatever is wrong with shards is found, named, and never silent."""

import io
import json
import os
import pickle
import signal
import struct
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mmtrain.data import source as reading
from mmtrain.data.check import check, readable
from mmtrain.data.decode import BadSample, Look, decode, decode_encoded, encode_mp4, probe
from mmtrain.data.index import Index
from mmtrain.data.shards import ShardWriter, encode_webp
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.train import checkpoint

COUNT, PER_SHARD = 12, 6


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def write(folder: Path, changed: dict[int, dict[str, bytes]] | None = None) -> Path:
    """Twelve samples in two shards, some with other members."""
    with ShardWriter(folder, max_samples=PER_SHARD) as writer:
        for i in range(COUNT):
            members = {"jpg": jpeg(i), "txt": f"caption {i}".encode()}
            writer.write(f"{i:03d}", (changed or {}).get(i, members))
    return folder


def bare(folder: Path) -> Path:
    """Without the index, as if the shards had come from elsewhere."""
    (folder / "index.npz").unlink()
    return folder


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "s")


def refused(where: object, *words: str) -> str:
    """What opening says; `check` must say it too."""
    with pytest.raises(UserError) as caught:
        Source(shards=str(where))
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def run(source: Source, workers: int = 0, steps: int = 6) -> list[list[str]]:
    return [b.keys for b in source.loader(seed=1, batch_size=4, steps=steps, num_workers=workers)]


CUTS = {"header": 100, "is cut": 700, "padding": -(1024 + 3), "member boundary": -1024, "end marker": -300}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("indexed", [True, False])
def test_truncation_is_found_wherever_it_falls(folder: Path, cut: str, indexed: bool) -> None:
    path = folder / "000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: CUTS[cut]])
    refused(
        folder if indexed else bare(folder),
        "000001.tar",
        "truncated",
        cut if cut != "member boundary" else "without an end",
    )
    report = check(folder)
    assert not report["ok"]
    assert report["samples"] == PER_SHARD  # the sound shard is still reported
    assert "000001.tar" in readable(report)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_flipped_header_byte_is_found(folder: Path, indexed: bool) -> None:
    path = folder / "000000.tar"
    data = bytearray(path.read_bytes())
    at = Index.of(folder).members(3)["jpg"].offset - 512 + 5
    data[at] ^= 1
    path.write_bytes(data)
    refused(folder if indexed else bare(folder), "000000.tar", "damaged header", "'002.txt'")
    assert not check(folder)["ok"]


def test_a_flipped_payload_byte_is_found_and_its_member_named(folder: Path) -> None:
    path = folder / "000001.tar"
    data = bytearray(path.read_bytes())
    data[Index.of(folder).members(8)["jpg"].offset + 300] ^= 1
    path.write_bytes(data)
    refused(folder, "000001.tar", "changed since it was indexed", "008.jpg")
    assert not check(folder)["ok"]


def test_a_payload_that_changes_during_a_run_is_found(folder: Path) -> None:
    source = Source(shards=str(folder))
    with open(folder / "000001.tar", "r+b") as file:
        at = source.index.members(8)["jpg"].offset + 300
        file.seek(at)
        file.write(bytes([source.raw(8)["jpg"][300] ^ 1]))
    with pytest.raises(UserError, match=r"'008'.*crc32"):
        run(source)


def test_a_touched_or_copied_shard_is_still_the_same(folder: Path) -> None:
    before = Index.of(folder).fingerprint
    os.utime(folder / "000000.tar")
    assert Index.of(folder).fingerprint == before


def test_a_caption_without_its_image(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {4: {"txt": b"alone"}})
    refused(folder, "'004'", "a caption without its image")
    report = check(folder)
    assert list(report["missing_media"]) == ["004"]
    assert not report["ok"]


def test_an_image_without_caption(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {4: {"jpg": jpeg(4)}})
    refused(folder, "'004'", "no caption", "require_captions")
    assert list(check(folder)["missing_captions"]) == ["004"]
    batch = next(iter(Source(shards=str(folder), require_captions=False).loader(seed=1, batch_size=12, steps=1)))
    assert dict(zip(batch.keys, batch.captions, strict=True))["004"] == ""


def test_an_empty_caption_counts_as_bad(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {4: {"jpg": jpeg(4), "txt": b" \n\n"}})
    with pytest.raises(UserError, match=r"'004'.*no caption"):
        run(Source(shards=str(folder)))


def test_two_media_in_one_sample(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {4: {"jpg": jpeg(4), "png": jpeg(4), "txt": b"x"}})
    refused(folder, "'004'", "2 media")


@pytest.mark.parametrize("size", [0, 1024, 10240])
def test_an_empty_shard(folder: Path, size: int) -> None:
    (folder / "000002.tar").write_bytes(bytes(size))
    refused(folder, "000002.tar", "holds no samples" if size else "truncated")
    assert not check(folder)["ok"]


def test_a_shard_that_is_no_tar(folder: Path) -> None:
    (folder / "000002.tar").write_bytes(b"<html>404 not found</html>" * 100)
    refused(folder, "000002.tar", "damaged header")


def test_data_after_the_end(folder: Path) -> None:
    first, second = (folder / name for name in ("000000.tar", "000001.tar"))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    refused(folder, "000000.tar", "after the end marker")


def test_duplicate_and_scattered_keys(tmp_path: Path) -> None:
    twice = [("a.jpg", jpeg(0)), ("a.txt", b"x"), ("a.txt", b"y")]
    scattered = [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("b.txt", b"y"), ("a.txt", b"x")]
    refused(tar(tmp_path / "t.tar", twice), "'a.txt'", "twice")
    refused(tar(tmp_path / "s.tar", scattered), "'a.txt'", "other samples between")


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(info)
    refused(path, "'a.jpg'", "link")


def test_missing_shards(folder: Path, tmp_path: Path) -> None:
    refused(f"{folder}/{{000000..000003}}.tar", "000002.tar", "no shard is there")
    refused(f"{folder}/9*.tar", "no shard is there")
    refused(tmp_path / "nowhere", "no shard is there")
    (folder / "000001.tar").unlink()
    refused(folder, "000001.tar", "missing, though the index lists it")
    assert not check(folder)["ok"]


def test_empty_folders(tmp_path: Path) -> None:
    refused(tmp_path, "the folder is empty")
    (tmp_path / "readme.md").write_text("x")
    refused(tmp_path, "no .tar file")


def test_equal_base_names_are_two_shards(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 50)):
        (tmp_path / name).mkdir()
        members = [
            (f"{i:03d}.{s}", jpeg(i) if s == "jpg" else b"x") for i in range(first, first + 3) for s in ("jpg", "txt")
        ]
        tar(tmp_path / name / "0000.tar", members)
    source = Source(shards=f"{tmp_path}/{{a,b}}/0000.tar")
    assert source.keys == ["000", "001", "002", "050", "051", "052"]
    assert source.raw(4)["jpg"] == jpeg(51)
    refused(f"{tmp_path}/{{a,a}}/0000.tar", "named twice")


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def test_pickles_are_never_decoded(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    beside = {"jpg": jpeg(4), "txt": b"x"} | dict.fromkeys(("pkl", "pyd", "pth", "npy", "pickle"), trap)
    folder = write(tmp_path / "s", {4: beside, 5: {"jpg": trap, "txt": b"x", "json": trap}})
    source = Source(shards=str(folder), max_bad_fraction=0.1)
    run(source)
    report = check(folder)
    assert set(report["bad"]) == set(source.bad) == {"005"}
    assert not sprung.exists()
    refused(write(tmp_path / "t", {4: {"pkl": trap, "txt": b"x"}}), "'004'", "pkl")


BROKEN = {
    "cut": jpeg(4)[:400],
    "empty": b"",
    "text": b"<html>",
    "gif": b"GIF89a" + bytes(100),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_undecodable_image_stops_the_run(tmp_path: Path, kind: str) -> None:
    source = Source(shards=str(write(tmp_path / "s", {4: {"jpg": BROKEN[kind], "txt": b"x"}})))
    for workers in (0, 1) if kind == "cut" else (0,):
        with pytest.raises(UserError, match=r"1 of 12 samples do not decode \('004' in 000000.tar: the .jpg"):
            run(source, workers)


def test_an_undecodable_image_is_replaced_and_counted(tmp_path: Path) -> None:
    broken = {i: {"jpg": BROKEN["cut"], "txt": b"x"} for i in (4, 5)}
    whole = run(Source(shards=str(write(tmp_path / "whole"))))
    folder = str(write(tmp_path / "s", broken))
    runs = []
    for workers in (0, 2):
        source = Source(shards=folder, max_bad_fraction=2 / 12)
        runs.append(run(source, workers))
        assert set(source.bad) == {"004", "005"}
        assert "does not decode" in source.bad["004"]
    neighbour = {"004": "000", "005": "000"}  # the next of the same shard, round its end
    assert runs[0] == runs[1] == [[neighbour.get(k, k) for k in keys] for keys in whole]
    with pytest.raises(UserError, match="2 of 12"):
        run(Source(shards=folder, max_bad_fraction=1 / 12))


def test_a_shard_of_nothing_but_damage_stops_even_a_patient_run(tmp_path: Path) -> None:
    broken = {i: {"jpg": BROKEN["cut"], "txt": b"x"} for i in range(PER_SHARD, COUNT)}
    with pytest.raises(UserError, match=r"000001.tar: none of its samples decodes"):
        run(Source(shards=str(write(tmp_path / "s", broken)), max_bad_fraction=1.0))


def test_a_sample_asked_for_by_number_is_named(tmp_path: Path) -> None:
    source = Source(shards=str(write(tmp_path / "s", {4: {"jpg": BROKEN["cut"], "txt": b"x"}})))
    with pytest.raises(UserError, match=r"000000.tar, sample '004': the .jpg does not decode"):
        source.sample(4)
    with pytest.raises(UserError, match=r"pixels; encoder outputs"):
        source.encoded(4)


def test_damage_of_any_kind_is_a_bad_sample() -> None:
    """Flipped and cut bytes decode to something or raise BadSample, never anything else."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 24, 24, 3), np.uint8)
    png = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(frames[0]).save(png, "PNG", exif=exif)
    files = {"jpg": jpeg(0), "png": png.getvalue(), "webp": encode_webp(frames, 25), "mp4": encode_mp4(frames, 25)}
    files["safetensors"] = safetensors.torch.save({"a": torch.ones(3, 4)})
    refusals = 0
    for suffix, payload in files.items():
        for _ in range(60):
            harmed = bytearray(payload)
            for at in rng.integers(0, min(len(harmed), 400), 4):
                harmed[at] = rng.integers(256)
            members = {suffix: bytes(harmed[: rng.integers(1, 2 * len(harmed))])}
            try:
                if suffix == "safetensors":
                    decode_encoded(members)
                else:
                    probe(suffix, members)
                    decode("k", members, Look(num_frames=1, size=(16, 16)))
            except BadSample:
                refusals += 1
    assert refusals > 100


def test_check_names_every_bad_sample(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {i: {"jpg": jpeg(0) if i == 4 else BROKEN["cut"], "txt": b"x"} for i in (4, 7)})
    report = check(folder)
    assert list(report["bad"]) == ["007"]
    assert report["duplicates"] == [["000", "004"]]
    assert "007: the .jpg does not decode" in readable(report)
    assert json.loads(json.dumps(report)) == report


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "said"), [(60_000, "bomb"), (9_000, "9000 x 9000 pixels are too large")])
def test_image_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, side: int, said: str) -> None:
    folder = write(tmp_path / "s", {4: {"png": png_bomb(side, side), "txt": b"x"}})
    assert said in check(folder)["bad"]["004"]
    with pytest.raises(UserError, match=said):
        run(Source(shards=str(folder)))


@pytest.mark.parametrize(
    "facts", [b'{"num_frames": 1e12}', b'{"num_frames": -1}', b'{"fps": "x"}', b"[]", b"{", b"\xff"]
)
def test_facts_are_bounded(tmp_path: Path, facts: bytes) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "WEBP")
    folder = write(tmp_path / "s", {4: {"webp": out.getvalue(), "txt": b"x", "json": facts}})
    with pytest.raises(UserError, match=r"'004' in 000000.tar: the \.json"):
        run(Source(shards=str(folder)))


def test_clips_that_are_too_short_or_cut(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    clip = encode_mp4(frames, 25)
    folder = write(
        tmp_path / "s", {i: {"mp4": clip if i != 5 else clip[: len(clip) // 2], "txt": b"x"} for i in range(COUNT)}
    )
    source = Source(shards=str(folder), num_frames=12, max_bad_fraction=0.1)
    run(source)
    assert set(source.bad) == set(check(folder)["bad"]) == {"005"}
    with pytest.raises(UserError, match="has 12 frames and 13 were wanted"):
        run(Source(shards=str(folder), num_frames=13))


def test_a_shard_that_disappears_during_a_run_is_named(folder: Path) -> None:
    source = Source(shards=str(folder))
    (folder / "000001.tar").unlink()
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"000001\.tar: cannot be read"):
            run(source, workers)


class Stalls:
    """Stands for a drive that fails so many times, then works."""

    def __init__(self, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures, self.attempts, self.read = failures, 0, os.pread
        monkeypatch.setattr(os, "pread", self)
        monkeypatch.setattr(reading, "WAITS", (0.0, 0.0, 0.0))

    def __call__(self, *what: int) -> bytes:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise OSError(5, "Input/output error")
        return self.read(*what)


def test_a_read_that_fails_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(shards=str(folder))
    whole = run(source)
    stall = Stalls(3, monkeypatch)
    assert run(source) == whole
    assert stall.attempts == 3 + 24  # one read a sample
    assert not source.bad


def test_a_drive_that_stays_away_stops_the_run_with_the_shard_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(shards=str(folder), max_bad_fraction=1.0)  # a drive is not a bad sample
    Stalls(10**6, monkeypatch)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"shard .*\.tar: cannot be read \(Input/output error, 4 times\)"):
            run(source, workers)


def hang(*_: object) -> None:
    time.sleep(3600)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("what", "said", "timeout"), [(hang, "no batch came for 1 s", 1.0), (die, "a worker died", 300.0)]
)
def test_a_worker_that_hangs_or_dies_is_an_error_in_time(
    folder: Path, what: object, said: str, timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(shards=str(folder))
    monkeypatch.setattr(reading, "decode", what)
    with pytest.raises(UserError, match=rf"data workers \(1\): {said}"):
        list(source.loader(seed=1, batch_size=4, steps=6, num_workers=1, timeout=timeout))


def test_bad_samples_are_counted_by_shard_and_kind_and_outlive_a_restart(tmp_path: Path) -> None:
    broken = {1: {"png": png_bomb(60_000, 60_000), "txt": b"x"}, 4: {"jpg": BROKEN["empty"], "txt": b"x"}}
    broken |= {5: {"jpg": BROKEN["text"], "txt": b"x"}, 9: {"jpg": jpeg(9), "txt": b""}}
    folder = str(write(tmp_path / "s", broken))
    source = Source(shards=folder, max_bad_fraction=4 / 12)
    run(source)
    first = {"does not decode": 2, "too large": 1}
    assert source.bad_counts == {"000000.tar": first, "000001.tar": {"no caption": 1}}
    again = Source(shards=folder, max_bad_fraction=4 / 12)
    run(again, steps=1)
    again.note(source.replaced)  # as a checkpoint gives them back
    run(again)
    assert again.bad_counts == source.bad_counts
    assert again.bad == source.bad  # the reasons hold nothing that differs between processes


def test_frames_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (30, 20)).save(out, "JPEG")
    folder = write(tmp_path / "s", {4: {"jpg": out.getvalue(), "txt": b"x"}})
    with pytest.raises(UserError, match=r"'004' is \(1, 3, 20, 30\).*set num_frames and size|set num_frames and size"):
        run(Source(shards=str(folder)))
    assert run(Source(shards=str(folder), size=16))


def test_pixels_and_encodings_do_not_mix(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {4: {"safetensors": b"", "txt": b"x"}})
    refused(folder, "mixed")


@pytest.mark.parametrize("payload", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b'{"a":' + bytes(11)])
def test_damaged_encodings_are_named(tmp_path: Path, payload: bytes) -> None:
    with ShardWriter(tmp_path / "s", max_samples=4) as writer:
        writer.write("k", {"safetensors": payload, "txt": b"x"})
    with pytest.raises(UserError, match=r"'k' in 000000.tar: the \.safetensors does not decode"):
        run(Source(shards=str(tmp_path / "s")))


@pytest.mark.parametrize("name", ["num_frames", "size", "window"])
def test_source_refuses_senseless_numbers(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        Source(shards=str(folder), **{name: 0})  # type: ignore[arg-type]


def test_a_batch_that_ranks_cannot_share(folder: Path) -> None:
    with pytest.raises(UserError, match="share evenly"):
        Source(shards=str(folder)).loader(seed=0, batch_size=5, steps=1, world_size=2)


def test_a_checkpoint_from_before_counts_were_kept_says_so(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 3, "run_id": "x", "buffers": {}}')
    with pytest.raises(UserError, match="no count of replaced samples.*the version of mmtrain that wrote it"):
        checkpoint.bad_samples(tmp_path)
