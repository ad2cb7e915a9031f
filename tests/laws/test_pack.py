"""Laws of packing: the files' own bytes and captions arrive, and nothing is packed from a folder that is not whole."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtrain.data.check import check, readable
from mmtrain.data.decode import encode_mp4
from mmtrain.data.pack import pack
from mmtrain.data.source import Source
from mmtrain.errors import UserError


def picture(seed: int, kind: str = "JPEG", width: int = 60, height: int = 40) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@pytest.fixture
def brand(tmp_path: Path) -> Path:
    """Three images and a clip, captions beside them; names that need care."""
    folder = tmp_path / "brand"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.v2.JPG").write_bytes(picture(0))
    (folder / "a.v2.txt").write_text("a red chair\na chair, red\n", encoding="utf-8")
    (folder / "café.png").write_bytes(picture(1, "PNG"))
    (folder / "café.txt").write_text("un café", encoding="utf-8-sig")
    (folder / "sub" / "b.webp").write_bytes(picture(2, "WEBP"))
    (folder / "sub" / "b.txt").write_text("blue")
    clip = np.random.default_rng(3).integers(0, 256, (6, 48, 64, 3), np.uint8)
    (folder / "sub" / "clip.mp4").write_bytes(encode_mp4(clip, 12.5))
    (folder / "sub" / "clip.txt").write_text("a clip")
    (folder / ".DS_Store").write_bytes(b"junk")
    (folder / "notes.pdf").write_bytes(b"junk")
    return folder


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.iterdir())


def test_bytes_and_captions_arrive(brand: Path, tmp_path: Path) -> None:
    done = pack(brand, tmp_path / "out", shard_size=3)
    assert (done.samples, done.bad, done.ignored) == (4, {}, ["notes.pdf"])
    assert "4 samples" in done.text()
    source = Source(shards=str(tmp_path / "out"), num_frames=1, size=32)
    assert source.keys == ["a_v2", "café", "sub/b", "sub/clip"]
    assert source.raw(0)["jpg"] == (brand / "a.v2.JPG").read_bytes()
    assert source.raw(3)["mp4"] == (brand / "sub" / "clip.mp4").read_bytes()
    captions = [source.sample(i).captions for i in range(4)]
    assert captions == [("a red chair", "a chair, red"), ("un café",), ("blue",), ("a clip",)]
    assert source.sample(0).truth == {"file_name": "a.v2.JPG"}
    batch = next(iter(source.loader(seed=0, batch_size=4, steps=1)))
    assert batch.frames is not None
    assert batch.frames.shape == (4, 1, 3, 32, 32)


def test_packing_twice_gives_the_same_bytes(brand: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(brand, tmp_path / name)
    assert (tmp_path / "one" / "000000.tar").read_bytes() == (tmp_path / "two" / "000000.tar").read_bytes()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables(brand: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        ("a.v2.JPG", 'said "so", twice'),
        ("café.png", "b"),
        ("sub/b.webp", "c"),
        ("sub/clip.mp4", "d"),
        ("café.png", "e"),
    ]
    if kind == "csv":
        lines = ["file_name,text,more"] + [f'{n},"{t.replace(chr(34), chr(34) * 2)}",1' for n, t in rows]
    else:
        lines = [json.dumps({"file_name": n, "text": t}) for n, t in rows[:-1]] + [""]
        lines[1] = json.dumps({"file_name": "café.png", "text": ["b", "e"]})
    (brand / f"metadata.{kind}").write_text("\n".join(lines), encoding="utf-8")
    pack(brand, tmp_path / "out")
    source = Source(shards=str(tmp_path / "out"))
    captions = [source.sample(i).captions for i in range(4)]
    assert captions == [('said "so", twice',), ("b", "e"), ("c",), ("d",)]


def test_a_template_fills_in(brand: Path, tmp_path: Path) -> None:
    (brand / "sub" / "b.txt").unlink()
    (brand / "sub" / "red_desk-lamp.png").write_bytes(picture(5, "PNG"))
    pack(brand, tmp_path / "out", caption_template="{name}, in the style of ACME")
    source = Source(shards=str(tmp_path / "out"))
    told = {source.keys[i]: source.sample(i).captions for i in range(len(source))}
    assert told["sub/red_desk-lamp"] == ("red desk lamp, in the style of ACME",)
    assert told["sub/b"] == ("b, in the style of ACME",)
    assert told["café"] == ("un café",)
    with pytest.raises(UserError, match=r"brand\.name"):
        pack(brand, tmp_path / "other", caption_template="{brand.name}")


def test_what_is_not_whole_is_refused(brand: Path, tmp_path: Path) -> None:
    (brand / "sub" / "b.txt").unlink()
    (brand / "café.txt").write_text("  \n")
    (brand / "gone.txt").write_text("a caption")
    with pytest.raises(UserError) as caught:
        pack(brand, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3  # all at once
    assert "'gone.txt' without its image" in lines[0]
    assert "café.png has no caption" in lines[1]
    assert "sub/b.webp has no caption" in lines[2]
    assert left(tmp_path) == ["brand"]


def test_a_table_that_names_a_missing_file(brand: Path, tmp_path: Path) -> None:
    rows = [f"{name},x" for name in ("a.v2.JPG", "café.png", "sub/b.webp", "sub/clip.mp4", "nowhere.png")]
    (brand / "metadata.csv").write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    with pytest.raises(UserError, match=r"metadata.csv.*'nowhere.png' without its image"):
        pack(brand, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", "name,caption\na,b\n", "line 2"),
        ("metadata.jsonl", '{"file_name": "a"\n', "line 1: not JSON"),
        ("metadata.jsonl", "\n[1]\n", "line 2"),
        ("metadata.jsonl", '{"file_name": "a", "text": 3}', "line 1"),
    ],
)
def test_broken_tables_are_named_by_line(brand: Path, tmp_path: Path, name: str, content: str, said: str) -> None:
    (brand / name).write_text(content)
    with pytest.raises(UserError, match=said):
        pack(brand, tmp_path / "out")


def test_undecodable_files(brand: Path, tmp_path: Path) -> None:
    (brand / "a.v2.JPG").write_bytes(picture(0)[:300])
    with pytest.raises(UserError, match=r"1 of 4 files do not decode \(a.v2.JPG"):
        pack(brand, tmp_path / "out")
    assert left(tmp_path) == ["brand"]
    done = pack(brand, tmp_path / "out", max_bad_fraction=0.25)
    assert list(done.bad) == ["a.v2.JPG"]
    assert done.samples == 3
    assert "left out a.v2.JPG" in done.text()


def test_nothing_but_damage_is_refused_whatever_the_share(brand: Path, tmp_path: Path) -> None:
    for path in (p for p in brand.rglob("*") if p.suffix in (".JPG", ".png", ".webp", ".mp4")):
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match="4 of 4"):
        pack(brand, tmp_path / "out", max_bad_fraction=1.0)
    assert left(tmp_path) == ["brand"]


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder is empty"):
        pack(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty" / "a.gif").write_bytes(b"x")
    with pytest.raises(UserError, match=r"only a\.gif"):
        pack(tmp_path / "empty", tmp_path / "out")


def test_an_existing_output_is_refused(brand: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("years of work")
    with pytest.raises(UserError, match="the output exists"):
        pack(brand, tmp_path / "out")
    assert (tmp_path / "out" / "thesis").read_text() == "years of work"


def test_two_files_of_one_name_are_refused(brand: Path, tmp_path: Path) -> None:
    (brand / "café.jpg").write_bytes(picture(9))
    with pytest.raises(UserError, match=r"café.jpg and café.png would share the key"):
        pack(brand, tmp_path / "out")


def test_the_report_tells_what_was_packed(brand: Path, tmp_path: Path) -> None:
    (brand / "twin.jpg").write_bytes((brand / "a.v2.JPG").read_bytes())
    (brand / "twin.txt").write_text("one two three")
    pack(brand, tmp_path / "out")
    report = check(tmp_path / "out")
    assert report["ok"]
    assert (report["samples"], report["shards"], report["ignored"]) == (5, 1, 0)
    assert report["media"] == {"jpg": 2, "png": 1, "webp": 1, "mp4": 1}
    assert report["resolutions"] == {"60x40": 4, "64x48": 1}
    assert report["duration_seconds"] == [0.48, 0.48, 0.48]
    assert report["captions_per_sample"] == [1, 1, 2]
    assert report["duplicates"] == [["a_v2", "twin"]]
    text = readable(report)
    assert "a_v2 = twin" in text
    assert text.endswith("\nok")
