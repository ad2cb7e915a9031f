"""Shards of others train unchanged, and ours are theirs: vanilla webdataset both ways, and img2dataset's layout."""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from mmtrain import cli
from mmtrain.data.check import check
from mmtrain.data.index import Index
from mmtrain.data.pack import pack
from mmtrain.data.shards import ShardWriter
from mmtrain.data.source import Source

COUNT, PER_SHARD = 12, 5
COLOURS = ("red", "green", "blue", "white")


def jpeg(i: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (50 + i, 64, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def caption(i: int) -> str:
    return f"a {COLOURS[i % 4]} square, number {i}"


def by_us(folder: Path) -> None:
    with ShardWriter(folder, max_samples=PER_SHARD) as writer:
        for i in range(COUNT):
            facts = json.dumps({"i": i}).encode()
            writer.write(f"{i:09d}", {"jpg": jpeg(i), "txt": caption(i).encode(), "json": facts})


def by_webdataset(folder: Path) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for i in range(COUNT):
            writer.write({"__key__": f"{i:09d}", "jpg": jpeg(i), "txt": caption(i), "json": {"i": i}})


def by_img2dataset(folder: Path) -> None:
    """Its layout: a tar, a table and a count for each shard; the key holds the shard's number; one member a caption."""
    folder.mkdir()
    for shard, start in enumerate(range(0, COUNT, PER_SHARD)):
        rows = []
        with webdataset.TarWriter(f"{folder}/{shard:05d}.tar") as tar:
            for i in range(start, min(start + PER_SHARD, COUNT)):
                row = _row(shard, i, i - start)
                rows.append(row)
                told = {"jpg": jpeg(i), "txt": caption(i), "json": json.dumps(row, indent=4)}
                tar.write({"__key__": row["key"], **told})
        _table(folder / f"{shard:05d}.parquet", rows)
        stats = {"count": len(rows), "successes": len(rows), "status_dict": {"success": len(rows)}}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))


def _row(shard: int, i: int, place: int) -> dict[str, Any]:
    size = {"width": 64, "height": 50 + i, "original_width": 640, "original_height": 500 + 10 * i}
    source = {"url": f"https://example.com/{i}.jpg", "status": "success", "error_message": None, "exif": "{}"}
    return {"caption": caption(i), "key": f"{shard:05d}{place:04d}", "sha256": _sha256(jpeg(i)), **source, **size}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def losses(folder: Path, runs: Path) -> list[str]:
    """Three steps of contrastive training from scratch: what the run's log says of the loss."""
    words = ["dataset.num_frames=1", "dataset.size=48", "trainer.steps=3", "trainer.batch_size=4", "trainer.threads=1"]
    words += ["trainer.log_every=1", f"dataset.shards={folder}", f"folder={runs}"]
    assert cli.main(["train", "pretrain_clip", *words]) == 0
    [log] = runs.glob("*/metrics.csv")
    with log.open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("write", [by_webdataset, by_img2dataset])
def test_shards_of_others_train_as_ours_do(write: Callable[[Path], None], tmp_path: Path) -> None:
    by_us(tmp_path / "ours")
    write(tmp_path / "theirs")
    before = {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir()}
    found = losses(tmp_path / "theirs", tmp_path / "runs" / "theirs")
    assert len(found) == 3
    assert found == losses(tmp_path / "ours", tmp_path / "runs" / "ours")
    assert {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir() if p.name in before} == before


@pytest.mark.parametrize("write", [by_webdataset, by_img2dataset])
def test_every_sample_of_theirs_comes_once_an_epoch(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "s")
    source = Source(shards=str(tmp_path / "s"), size=16)
    batches = list(source.loader(seed=0, batch_size=4, steps=3))
    seen = sorted((key, text) for batch in batches for key, text in zip(batch.keys, batch.captions, strict=True))
    assert seen == sorted(zip(source.keys, map(caption, range(COUNT)), strict=True))
    assert source.index.facts["height"].tolist() == [50 + i for i in range(COUNT)]
    report = check(tmp_path / "s")
    assert (report["ok"], report["shards"], report["ignored"]) == (True, 3, 0)


def test_theirs_packed_again_hold_the_same(tmp_path: Path) -> None:
    by_img2dataset(tmp_path / "s")
    pack(tmp_path / "s", tmp_path / "out", shard_size=3, where=["height>=55"])
    theirs, ours = Source(shards=str(tmp_path / "s")), Source(shards=str(tmp_path / "out"))
    assert ours.keys == theirs.keys[5:]
    assert [ours.raw(i) for i in range(7)] == [theirs.raw(i) for i in range(5, 12)]


def test_vanilla_webdataset_reads_ours(tmp_path: Path) -> None:
    """From files packed with all that packing does, through its own decoders and its own batching."""
    (tmp_path / "files").mkdir()
    for i in range(COUNT):
        (tmp_path / "files" / f"{i:02d}.jpg").write_bytes(jpeg(i))
        (tmp_path / "files" / f"{i:02d}.txt").write_text(f"{caption(i)}\nanother")
    pack(tmp_path / "files", tmp_path / "s", shard_size=PER_SHARD, workers=2)
    urls = [str(p) for p in sorted((tmp_path / "s").glob("*.tar"))]
    assert len(urls) == 3
    read = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg", "txt", "json")
    found = list(read)
    assert [key for key, *_ in found] == Index.of(tmp_path / "s").keys
    for i, (_, pixels, text, facts) in enumerate(found):
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(jpeg(i)))))
        assert text.splitlines() == [caption(i), "another"]
        assert facts == {"file_name": f"{i:02d}.jpg"}
