"""Laws of packing: the files' own bytes and captions arrive, and nothing is packed from a folder that is not whole."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtrain.data import claim
from mmtrain.data.check import check, readable
from mmtrain.data.decode import encode_mp4
from mmtrain.data.index import Index
from mmtrain.data.items import Item, Piece
from mmtrain.data.pack import cut, pack
from mmtrain.data.shards import ShardWriter
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


ROWS = {"sub/b.webp": ["blue", "azure"], "a.v2.JPG": ["a red chair"]}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_by_itself_names_its_files(brand: Path, tmp_path: Path, kind: str) -> None:
    """In the table's order; what it does not name is not asked for."""
    path = brand / f"mine.{kind}"
    if kind == "csv":
        path.write_text("image,caption\n" + "".join(f"{n},{t}\n" for n, texts in ROWS.items() for t in texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"image": n, "caption": t}) + "\n" for n, t in ROWS.items()))
    else:
        arrow = pytest.importorskip("pyarrow")
        table = arrow.table({"image": list(ROWS), "caption": list(ROWS.values()), "more": [1, 2]})
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    done = pack(path, tmp_path / "out", columns=("image", "caption"))
    source = Source(shards=str(tmp_path / "out"))
    assert (done.samples, done.ignored, source.keys) == (2, [], ["sub/b", "a_v2"])
    assert [source.sample(i).captions for i in range(2)] == [("blue", "azure"), ("a red chair",)]
    assert source.raw(1)["jpg"] == (brand / "a.v2.JPG").read_bytes()


def test_a_table_by_itself_is_checked_whole(brand: Path, tmp_path: Path) -> None:
    names = ("gone.png", "../brand/a.v2.JPG", "/etc/hostname.png", "notes.pdf", "a.v2.JPG")
    (brand / "mine.csv").write_text("file_name,text\n" + "".join(f"{n},x\n" for n in names))
    with pytest.raises(UserError) as caught:
        pack(brand / "mine.csv", tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert ["leaves the table's folder" in line for line in lines] == [True, True, False]
    assert "notes.pdf" in lines[2]
    (brand / "mine.csv").write_text("file_name,text\ngone.png,x\na.v2.JPG,\n")
    with pytest.raises(UserError, match=r"gone.png(.|\n)*a.v2.JPG has no caption"):
        pack(brand / "mine.csv", tmp_path / "out")
    assert left(tmp_path) == ["brand"]


def test_parquet_that_cannot_be_read(brand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"url": ["a"], "caption": ["b"]}), brand / "mine.parquet")
    with pytest.raises(UserError, match=r"no column file_name and text \(it has url, caption\)"):
        pack(brand / "mine.parquet", tmp_path / "out")
    parquet.write_table(arrow.table({"file_name": [3], "text": ["b"]}), brand / "mine.parquet")
    with pytest.raises(UserError, match=r"mine.parquet, row 1: .*columns file_name and text"):
        pack(brand / "mine.parquet", tmp_path / "out")
    (brand / "mine.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="does not open as parquet"):
        pack(brand / "mine.parquet", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow is not installed.*pip install 'mmtrain\[parquet\]'"):
        pack(brand / "mine.parquet", tmp_path / "out")


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


def shards_of(folder: Path) -> dict[str, bytes]:
    """Everything in the folder but the index, which holds times."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "index.npz"}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twenty images of different sizes, of which the sixth to eighth do not decode and fill shards of their own."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(20):
        whole = picture(i, width=20 + 7 * i)
        (folder / f"{i:02d}.jpg").write_bytes(whole if i not in (5, 6, 7) else b"junk" * 20_000)
        (folder / f"{i:02d}.txt").write_text(f"picture {i}")
    return folder


def test_workers_change_no_byte(many: Path, tmp_path: Path) -> None:
    results = []
    for workers in (1, 3):
        seen: list[tuple[int, int]] = []
        out = tmp_path / f"out{workers}"
        done = pack(
            many,
            out,
            shard_size=2,
            max_bad_fraction=0.2,
            workers=workers,
            progress=lambda done, total, seen=seen: seen.append((done, total)),  # type: ignore[misc]
        )
        assert (done.samples, list(done.bad)) == (17, ["05.jpg", "06.jpg", "07.jpg"])
        assert seen == [(n, 20) for n in range(1, 21)]
        results.append(shards_of(out))
    assert results[0] == results[1]
    assert list(results[0]) == [f"{n:06d}.tar" for n in range(len(results[0]))]  # also where a whole shard was bad
    assert left(tmp_path) == ["many", "out1", "out3"]


def test_a_fault_in_a_worker_is_the_users_error(many: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of 20 files do not decode"):
        pack(many, tmp_path / "out", shard_size=2, workers=2)
    assert left(tmp_path) == ["many"]


def test_a_cut_off_run_goes_on_after_its_whole_shards(many: Path, tmp_path: Path) -> None:
    how = {"shard_size": 2, "max_bad_fraction": 0.2}
    pack(many, tmp_path / "whole", **how)

    def halt(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(many, tmp_path / "out", **how, progress=halt)
    partial = tmp_path / ".out.partial"
    kept = {p.stat().st_mtime_ns for p in partial.glob("*.tar")}
    assert len(kept) >= 2
    assert left(tmp_path) == [".out.partial", "many", "whole"]
    seen: list[int] = []
    done = pack(many, tmp_path / "out", **how, progress=lambda done, total: seen.append(done))
    assert len(seen) < 20
    assert seen[-1] == 20
    assert list(done.bad) == ["05.jpg", "06.jpg", "07.jpg"]  # also those of the shards that were kept
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
    assert kept <= {p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}


def test_another_plan_starts_anew(many: Path, tmp_path: Path) -> None:
    def halt(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(many, tmp_path / "out", shard_size=4, max_bad_fraction=0.2, progress=halt)
    (many / "00.txt").write_text("another caption")
    seen: list[int] = []
    pack(many, tmp_path / "out", shard_size=4, max_bad_fraction=0.2, progress=lambda done, total: seen.append(done))
    assert len(seen) == 20
    assert Source(shards=str(tmp_path / "out")).sample(0).captions == ("another caption",)


PACK = "from mmtrain.data.pack import pack; pack({!r}, {!r}, shard_size=5, max_bad_fraction=0.2, workers=2)"


def start_packing(many: Path, out: Path) -> subprocess.Popen[bytes]:
    """A process that packs 300 files with two workers, and has written a shard."""
    for i in range(20, 300):
        (many / f"{i:03d}.jpg").write_bytes(picture(i))
        (many / f"{i:03d}.txt").write_text("x")
    command = [sys.executable, "-c", PACK.format(str(many), str(out))]
    started = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while not list(out.with_name(".out.partial").glob("0*.json")):
        assert started.poll() is None
        time.sleep(0.005)
    return started


def test_a_killed_run_leaves_nothing_half_written(many: Path, tmp_path: Path) -> None:
    """SIGKILL to the parent alone, with its workers at work: the next run waits until they have ended."""
    killed = start_packing(many, tmp_path / "out")
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out").exists()
    pack(many, tmp_path / "out", shard_size=5, max_bad_fraction=0.2)
    pack(many, tmp_path / "whole", shard_size=5, max_bad_fraction=0.2)
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
    assert left(tmp_path) == ["many", "out", "whole"]


def test_two_runs_do_not_write_to_one_output(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE_SECONDS", 0.0)
    first = start_packing(many, tmp_path / "out")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=f"process {first.pid} is at work on it"):
            pack(many, tmp_path / "out", shard_size=5, max_bad_fraction=0.2)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0
    assert left(tmp_path) == ["many", "out"]


def test_shards_are_cut_to_equal_bytes() -> None:
    sizes = np.random.default_rng(0).integers(1_000, 90_000, 1001).tolist()
    items = [Item(f"{i}", f"{i}", (Piece("jpg", Path("x"), 0, size),)) for i, size in enumerate(sizes)]
    runs = cut(items, 100)
    assert [item for run in runs for item in run] == items
    held = [sum(item.size for item in run) for run in runs]
    assert len(runs) == 11
    assert max(held) - min(held) <= 2 * max(sizes)
    huge = [Item("h", "h", (Piece("mp4", Path("x"), 0, 10**6),)), *items[:20]]
    assert len(cut(huge, 3)[0]) == 1


def test_shards_are_packed_again(brand: Path, tmp_path: Path) -> None:
    """Every member of every sample is carried over, into other shards."""
    with ShardWriter(tmp_path / "s", max_samples=3) as writer:
        for i in range(10):
            extra = {"json": b'{"i": 1}', "seg.png": b"mask"} if i % 2 else {}
            writer.write(f"a/{i}", {"jpg": picture(i, width=20 + i), "txt": b"one two" if i else b"", **extra})
    pack(tmp_path / "s", tmp_path / "out", shard_size=5, workers=2)
    before, after = Index.of(tmp_path / "s"), Index.of(tmp_path / "out")
    assert (before.keys, len(after.shards)) == (after.keys, 2)
    for i in range(10):
        told = [{s: (m.size, m.crc32) for s, m in index.members(i).items()} for index in (before, after)]
        assert told[0] == told[1]
    pack(f"{tmp_path}/s/*.tar", tmp_path / "few", where=["width >= 23", "captions>0", "width!=27"])
    assert Index.of(tmp_path / "few").keys == [f"a/{i}" for i in (3, 4, 5, 6, 8, 9)]
    pack(tmp_path / "s" / "000000.tar", tmp_path / "told", caption_template="{name} of ACME")
    source = Source(shards=str(tmp_path / "told"))
    assert [source.sample(i).captions for i in range(3)] == [("0 of ACME",), ("one two",), ("one two",)]


def test_shards_that_changed_unseen_are_not_packed_again(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=9) as writer:
        for i in range(3):
            writer.write(f"{i}", {"png": picture(i, "PNG"), "txt": b"caption"})
    path, at = tmp_path / "s" / "000000.tar", Index.of(tmp_path / "s").members(1)["txt"].offset
    before, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"000000.tar, 1: the .txt changed since it was listed"):
        pack(tmp_path / "s", tmp_path / "out")


def test_files_are_filtered_too(brand: Path, tmp_path: Path) -> None:
    done = pack(brand, tmp_path / "out", where=["num_frames>1"])
    assert (done.samples, Index.of(tmp_path / "out").keys) == (1, ["sub/clip"])


@pytest.mark.parametrize(
    ("clause", "said"),
    [
        ("widht>=3", "'widht>=3'.*width, height"),
        ("width", "'width'"),
        ("width>=1.2.3", "write it"),
        ("fps>99", "no sam"),
    ],
)
def test_senseless_filters_are_refused(brand: Path, tmp_path: Path, clause: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pack(brand, tmp_path / "out", where=[clause])
    assert left(tmp_path) == ["brand"]


def test_shards_that_cannot_be_packed_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, max_samples=9) as writer:
            writer.write("k", {"jpg": picture(0), "txt": b"x"})
    with pytest.raises(UserError, match=r"the key 'k' is in .*a/000000.tar and .*b/000000.tar"):
        pack(f"{tmp_path}/{{a,b}}/000000.tar", tmp_path / "out")
    (tmp_path / "a" / "loose.png").write_bytes(picture(0, "PNG"))
    with pytest.raises(UserError, match=r"both shards \(000000.tar\) and files \(loose.png\)"):
        pack(tmp_path / "a", tmp_path / "out")
    with ShardWriter(tmp_path / "c", max_samples=9) as writer:
        writer.write("whole", {"jpg": picture(0), "txt": b"x"})
        writer.write("alone", {"txt": b"x"})
    with pytest.raises(UserError, match=r"000000.tar, alone: no image or clip"):
        pack(tmp_path / "c", tmp_path / "out")
