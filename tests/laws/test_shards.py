"""Laws of the shard format: the same input gives the same bytes, and vanilla webdataset and we read each other's."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from mmtrain.data import world
from mmtrain.data.index import Index
from mmtrain.data.shards import ShardWriter, write_world
from mmtrain.data.source import Source
from mmtrain.errors import UserError


def tars(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tar"))}


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "s", split="train", count=40, seed=1, shard_size=15)


def test_the_same_world_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", split="train", count=40, seed=1, shard_size=15)
    assert list(tars(folder)) == ["000000.tar", "000001.tar", "000002.tar"]
    assert tars(again) == tars(folder)
    other = write_world(tmp_path / "other", split="train", count=40, seed=2, shard_size=15)
    assert tars(other) != tars(folder)


def test_some_motions_have_the_share_that_was_asked_and_the_others_the_rest_evenly(tmp_path: Path) -> None:
    asked = {"circling": 0.4, "still": 0.0}
    drawn = [world.scene(5, "train", i, 0.2, 1.0, asked) for i in range(1500)]
    motions = [sprite.motion for scene in drawn for sprite in scene.sprites]
    shares = {name: motions.count(name) / len(motions) for name in world.MOTIONS}
    assert shares["circling"] == pytest.approx(0.4, abs=0.03)
    assert shares["still"] == 0
    others = [share for name, share in shares.items() if name not in asked]
    assert all(share == pytest.approx(0.6 / len(others), abs=0.02) for share in others)
    folder = write_world(tmp_path / "s", split="train", count=12, seed=5, motions={"circling": 1.0})
    seen = [Source(shards=str(folder)).sample(i).truth for i in range(12)]
    assert {each["motion"] for truth in seen if truth for each in truth["objects"]} == {"circling"}


@pytest.mark.parametrize(
    ("motions", "said"),
    [
        ({"cirling": 0.5}, "motions: 'cirling'; one of left, right"),
        ({"circling": 0.7, "still": 0.4}, "motions: 1.1 in all; at most 1"),
        (dict.fromkeys(world.MOTIONS, 0.01), "motions: 0.11 in all"),
        ({"still": -0.1}, "motions still: -0.1; a share from 0 to 1"),
    ],
)
def test_shares_of_motions_that_make_no_whole_are_refused(motions: dict[str, float], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_world(tmp_path / "s", split="train", count=1, seed=1, motions=motions)
    assert not list(tmp_path.iterdir())


def test_stills_are_the_first_frames(folder: Path, tmp_path: Path) -> None:
    stills = Source(shards=str(write_world(tmp_path / "s", split="train", count=3, seed=1, stills=True)))
    clips = Source(shards=str(folder))
    for i in range(3):
        still, clip = stills.sample(i), clips.sample(i)
        assert np.array_equal(still.frames, clip.frames[:1])
        assert (still.captions, still.truth) == (clip.captions, clip.truth)


def test_the_world_comes_back_exactly(folder: Path) -> None:
    source = Source(shards=str(folder))
    motions = set()
    for i, (key, frames, captions, truth) in enumerate(world.samples(1, "train", 40)):
        sample = source.sample(i)
        assert (sample.key, sample.fps, sample.captions, sample.truth) == (key, 25.0, tuple(captions), truth)
        assert np.array_equal(sample.frames, frames)
        motions |= {o["motion"] for o in truth["objects"] if len(truth["objects"]) == 1}
    assert "still" in motions  # equal neighbours are merged in the file and must be spread again


def test_vanilla_webdataset_reads_ours(folder: Path) -> None:
    urls = [str(p) for p in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    source = Source(shards=str(folder))
    assert [s["__key__"] for s in found] == source.keys
    for i, sample in enumerate(found):
        assert {k: v for k, v in sample.items() if not k.startswith("__")} == source.raw(i)


def test_we_read_vanilla_webdataset(tmp_path: Path) -> None:
    with webdataset.ShardWriter(f"{tmp_path}/%05d.tar", maxcount=4, verbose=0) as writer:
        for i in range(10):
            long = "a" * 150 if i == 3 else "b"
            writer.write({"__key__": f"{long}/{i:03d}", "jpg": jpeg(i), "txt": f"caption {i}", "json": {"i": i}})
    source = Source(shards=str(tmp_path), size=16)
    assert len(source) == 10
    assert [len(s) for s in source.index.shards] == [4, 4, 2]
    assert source.keys[3] == "a" * 150 + "/003"
    assert source.raw(7)["jpg"] == jpeg(7)
    assert source.sample(7).captions == ("caption 7",)
    batch = next(iter(source.loader(seed=0, batch_size=10, steps=1)))
    assert batch.frames is not None
    assert batch.frames.shape == (10, 1, 3, 16, 16)


def test_img2dataset_layout_is_read_unchanged(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=5) as writer:
        for i in range(5):
            facts = json.dumps({"caption": f"c{i}", "url": "u", "width": 40, "status": "success"}).encode()
            writer.write(f"00000{i:04d}", {"jpg": jpeg(i), "txt": f"c{i}".encode(), "json": facts})
    (tmp_path / "s" / "000000.parquet").write_bytes(b"table")
    (tmp_path / "s" / "000000_stats.json").write_text("{}")
    source = Source(shards=str(tmp_path / "s"))
    truth = source.sample(2).truth
    assert len(source) == 5
    assert truth is not None
    assert truth["status"] == "success"


def test_shards_close_at_their_bounds(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=100, max_bytes=4000) as writer:
        for i in range(6):
            writer.write(f"{i}", {"txt": b"x" * 1000})  # 512 of header and 1024 of padded content
    assert Index.of(tmp_path / "s").lengths == [3, 3]


def test_members_of_a_key_are_sorted(tmp_path: Path) -> None:
    for name, order in (("a", ("txt", "jpg", "json")), ("b", ("json", "txt", "jpg"))):
        with ShardWriter(tmp_path / name, max_samples=9) as writer:
            writer.write("k", {suffix: suffix.encode() for suffix in order})
    assert tars(tmp_path / "a") == tars(tmp_path / "b")


@pytest.mark.parametrize(
    "pattern", ["", "/*.tar", "/{000000..000002}.tar", "/{000000,000001,000002}.tar", "/00000?.tar"]
)
def test_ways_to_name_shards(folder: Path, pattern: str) -> None:
    assert Index.of(f"{folder}{pattern}").fingerprint == Index.of(folder).fingerprint


def test_one_tar_can_be_named(folder: Path) -> None:
    assert len(Source(shards=str(folder / "000002.tar"))) == 10


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def halt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "s", split="train", count=20, seed=1, shard_size=3, progress=halt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_kept(folder: Path) -> None:
    before = tars(folder)
    worked: list[int] = []
    with pytest.raises(UserError, match="exists"):
        write_world(folder, split="train", count=1, seed=1, progress=lambda done, total: worked.append(done))
    assert not worked  # found before the work, not after it
    assert tars(folder) == before


@pytest.mark.parametrize(
    ("key", "suffix", "said"),
    [("a.b", "txt", "reads back"), ("a", "TXT", "reads back"), ("a" * 300, "txt", "ustar"), ("k", "txt", "twice")],
)
def test_keys_that_would_not_read_back_are_refused(tmp_path: Path, key: str, suffix: str, said: str) -> None:
    def write() -> None:
        with ShardWriter(tmp_path / "s", max_samples=9) as writer:
            writer.write("k", {"txt": b""})
            writer.write(key, {suffix: b""})

    with pytest.raises(UserError, match=said):
        write()
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_world(
        tmp_path / "s", split="heldout", count=3, seed=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_sidecar_is_used_again(folder: Path) -> None:
    Index.of(folder)
    sidecar = folder / "index.npz"
    before = sidecar.stat().st_mtime_ns
    assert Index.of(folder).keys == Index.of(folder).keys
    assert sidecar.stat().st_mtime_ns == before
    sidecar.write_bytes(b"torn")
    assert len(Index.of(folder)) == 40
    assert sidecar.stat().st_size > 1000
