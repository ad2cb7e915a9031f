"""Laws of the report: what is the same, what looks the same, what leaks, and when it is too much."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mmtrain import cli
from mmtrain.data import duplicates
from mmtrain.data.check import check, readable
from mmtrain.data.decode import encode_mp4
from mmtrain.data.duplicates import NEAR_BITS, SIGNATURE, groups, near_pairs
from mmtrain.data.shards import ShardWriter


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Smooth areas and edges, as photographs have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", quality: int = 92) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, quality=quality)
    return out.getvalue()


def write(folder: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with ShardWriter(folder, max_samples=10) as writer:
        for key, members in samples.items():
            writer.write(key, {"txt": b"x", **members})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty scenes, and of the first ones copies: the bytes, smaller and worse, another format, a little brighter."""
    samples = {f"{i:02d}": {"jpg": saved(scene(i))} for i in range(30)}
    samples["bytes"] = {"jpg": saved(scene(0))}
    samples["small"] = {"jpg": saved(scene(1).resize((80, 60)), quality=50)}
    samples["png"] = {"png": saved(scene(2), "PNG")}
    samples["bright"] = {"webp": saved(ImageEnhance.Brightness(scene(3)).enhance(1.04), "WEBP", 80)}
    samples["flipped"] = {"png": saved(scene(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG")}
    samples["dim"] = {"png": saved(ImageEnhance.Brightness(scene(5)).enhance(0.5), "PNG")}
    return write(tmp_path / "s", samples)


def test_duplicates_are_found_and_strangers_are_not(folder: Path) -> None:
    report = check(folder)
    assert report["duplicates"] == [["00", "bytes"]]
    assert report["near_duplicates"] == [["01", "small"], ["02", "png"], ["03", "bright"]]
    assert report["duplicate_fraction"] == [4 / 36, 1.0]
    assert report["ok"]
    assert not check(folder, max_duplicate_fraction=0.1)["ok"]
    assert "01 ~ small" in readable(report)


def test_workers_change_nothing(folder: Path) -> None:
    reports = [check(folder, workers=workers) for workers in (1, 2)]
    for report in reports:
        assert report.pop("decoded_per_second") > 0
    assert reports[0] == reports[1]


def test_plain_pictures_differ_by_colour(tmp_path: Path) -> None:
    """Their hashes are all zero, also where a codec left its traces."""
    plain = {name: {"png": saved(Image.new("RGB", (40, 40), name), "PNG")} for name in ("red", "blue", "white")}
    traces = 255 - np.random.default_rng(0).integers(0, 3, (8, 8), np.uint8).repeat(8, 0).repeat(8, 1)
    report = check(write(tmp_path / "s", plain | {"traces": {"png": saved(Image.fromarray(traces), "PNG")}}))
    assert report["near_duplicates"] == [["white", "traces"]]


def test_clips_are_compared_from_start_to_end(tmp_path: Path) -> None:
    """Two clips with the same middle frame are not the same clip; a clip encoded again is."""
    first, middle, last, other = (np.asarray(scene(i, 64, 48)) for i in range(4))
    there = np.stack([first] * 3 + [middle] * 3 + [last] * 3)
    samples = {"there": encode_mp4(there, 10), "back": encode_mp4(there[::-1], 10), "again": encode_mp4(there, 10, 30)}
    samples["elsewhere"] = encode_mp4(np.stack([first] * 3 + [middle] * 3 + [other] * 3), 10)
    report = check(write(tmp_path / "s", {key: {"mp4": clip} for key, clip in samples.items()}))
    assert report["near_duplicates"] == [["there", "again"]]


def test_leaks_are_named(folder: Path, tmp_path: Path) -> None:
    held = {
        "new": {"jpg": saved(scene(99))},
        "same": {"jpg": saved(scene(7))},
        "resized": {"webp": saved(scene(8).resize((90, 70)), "WEBP", 60)},
    }
    heldout = write(tmp_path / "heldout", held)
    report = check(folder, heldout=heldout)
    assert report["leaked"] == {"same": "07", "resized": "08"}
    assert report["leak_fraction"] == [2 / 3, 0.0]
    assert not report["ok"]
    assert check(folder, heldout=heldout, max_leak_fraction=0.7)["ok"]
    assert "resized ~ 08" in readable(report)


def test_near_pairs_are_all_pairs_within_the_bound() -> None:
    """Against every pair compared, with hashes close enough to each other that both answers are common."""
    rng = np.random.default_rng(0)
    rows = np.zeros(300, SIGNATURE)
    centres = rng.integers(0, 2**64, 20, np.uint64)
    for row in rows:
        flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, rng.integers(1, 6)).astype(np.uint64))
        row["hash"] = rng.choice(centres) ^ flips
        row["small"] = rng.choice([0, 15, 30])
    rows[290:] = rows[:10]
    wanted = [
        [i, j]
        for i in range(300)
        for j in range(i + 1, 300)
        if (int(rows["hash"][i]) ^ int(rows["hash"][j])).bit_count() <= NEAR_BITS
        and abs(int(rows["small"][i, 0, 0, 0, 0]) - int(rows["small"][j, 0, 0, 0, 0])) <= 20
    ]
    firsts, pairs = near_pairs(rows)
    alike = {(i, j) for i, j in pairs.tolist()} | {(i, i) for i in firsts.tolist()}
    found = [[i, j] for i in range(300) for j in range(i + 1, 300) if tuple(sorted(firsts[[i, j]].tolist())) in alike]
    assert len(wanted) > 100
    assert len(set(firsts.tolist())) < 300
    assert found == wanted
    assert groups(np.array([[3, 4], [1, 2], [4, 9]])) == [[1, 2], [3, 4, 9]]


def test_many_plain_pictures_are_compared_with_few() -> None:
    """All have one hash. Which are alike is known: each colour beside its two neighbours; and many are equal."""
    rows = np.zeros(20_000, SIGNATURE)
    reds, greens = np.divmod(np.arange(20_000) % 144, 12)
    rows["small"][..., 0], rows["small"][..., 1] = (v[:, None, None, None] * 20 for v in (reds, greens))
    rows["small"][:, 0, 0, 0, 2] = np.arange(20_000) % 7  # of each colour a few kinds
    firsts, pairs = near_pairs(rows)
    assert len(set(firsts.tolist())) == 144 * 7
    beside = {(min(a, b), max(a, b)) for a in range(144) for b in range(144) if _touch(a, b)}
    assert {tuple(sorted((i % 144, j % 144))) for i, j in pairs.tolist()} == beside | {(a, a) for a in range(144)}
    assert len(groups(pairs)) == 1


def _touch(a: int, b: int) -> bool:
    return a != b and max(abs(a // 12 - b // 12), abs(a % 12 - b % 12)) == 1


def test_a_spread_of_plain_pictures_is_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros(3_000, SIGNATURE)
    rows["small"] = np.random.default_rng(0).integers(0, 256, (3_000, 1, 1, 1, 3))
    compared = 0
    own = duplicates._compared

    def counted(signatures: np.ndarray, places: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(places) ** 2
        return own(signatures, places)

    monkeypatch.setattr(duplicates, "_compared", counted)
    near_pairs(rows)
    assert compared < 6 * 3_000**2 / 4  # six bands, and a quarter of the pairs in each


def test_the_verb_says_it_by_its_status(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "check", str(folder), "--json", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out.endswith("\nok\n")
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 36
    assert cli.main(["shards", "check", str(folder), "--max-duplicate-fraction", "0.1"]) == 1
    out = capsys.readouterr().out
    assert "duplicate fraction: 11.11% of the samples, and 10.00% are allowed" in out
    assert out.endswith("\nNOT ok\n")


def test_a_stated_tolerance(tmp_path: Path) -> None:
    samples = {f"{i}": {"jpg": saved(scene(i))} for i in range(10)}
    samples["3"] = {"jpg": saved(scene(3))[:300]}
    folder = write(tmp_path / "s", samples)
    assert not check(folder)["ok"]
    report = check(folder, max_bad_fraction=0.1)
    assert report["ok"]
    assert report["bad_fraction"] == [0.1, 0.1]
    assert "000000.tar" in report["bad"]["3"]
