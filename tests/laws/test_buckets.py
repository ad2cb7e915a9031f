"""Laws of buckets: the index decides who shares a batch, each sample comes once, and a restart changes nothing."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain import config
from mmtrain.batch import Batch
from mmtrain.data.buckets import Buckets
from mmtrain.data.cache import encode_shards
from mmtrain.data.decode import encode_mp4
from mmtrain.data.facts import FACTS
from mmtrain.data.mixture import Mixture
from mmtrain.data.order import BucketedOrder, permutation
from mmtrain.data.shards import ShardWriter
from mmtrain.data.source import Source
from mmtrain.errors import UserError

WIDE, TALL, SQUARE = (60, 30), (30, 60), (40, 40)
SIZES = [WIDE, TALL, SQUARE, WIDE, SQUARE, WIDE, WIDE]  # of sample i, again and again


def buckets() -> Buckets:
    return Buckets(side=32, multiple=8, max_ratio=2.0, num_frames=[1, 4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three shapes and a few clips of one, in shards of seven; the tenth sample does not decode."""
    rng = np.random.default_rng(0)
    out = tmp_path_factory.mktemp("shapes") / "s"
    with ShardWriter(out, max_samples=7) as writer:
        for i in range(33):
            width, height = SIZES[i % len(SIZES)]
            frames = rng.integers(0, 256, (6, height, width, 3), np.uint8)
            png = io.BytesIO()
            Image.fromarray(frames[0]).save(png, "PNG")
            medium = {"mp4": encode_mp4(frames, 10.0)} if i % 5 == 4 else {"png": png.getvalue()}
            if i == 10:
                medium = {"png": png.getvalue()[:200]}
            writer.write(f"{i:02d}", {**medium, "txt": b"one\ntwo"})
    return out


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return Source(shards=str(folder), buckets=buckets(), window=2, max_bad_fraction=0.1)


def said(batches: list[Batch]) -> list[tuple[object, ...]]:
    return [(b.keys, b.positions, b.captions, b.frames.numpy().tobytes()) for b in batches if b.frames is not None]


def test_sizes_have_the_area_and_come_in_both_directions() -> None:
    found = Buckets(side=512, multiple=64, max_ratio=2.0, num_frames=[1]).sizes
    assert (512, 512) in found
    assert {(h, w) for w, h in found} == set(found)
    for width, height in found:
        assert width % 64 == height % 64 == 0
        assert max(width, height) <= 2 * min(width, height)
        assert abs(width * height / 512**2 - 1) < 0.1
    assert found == sorted(found, key=lambda size: size[0] / size[1])


def test_a_sample_goes_to_the_nearest_shape_and_the_longest_length() -> None:
    chosen = Buckets(side=64, multiple=16, max_ratio=4.0, num_frames=[9, 1, 5])
    rows = [(640, 480, 1, 0), (100, 400, 5, 25), (64, 64, 8, 25), (64, 64, 400, 25), (64, 64, 3, 25), (0, 0, 0, 0)]
    facts = np.array([(*row, 1, 1, 1) for row in rows], FACTS)
    found = [chosen.shape(k) for k in chosen.assign(facts, stride=1, fps=None)]
    assert found == [((80, 48), 1), ((32, 128), 5), ((64, 64), 5), ((64, 64), 9), ((64, 64), 1), ((64, 64), 1)]
    strided = [chosen.shape(k)[1] for k in chosen.assign(facts, stride=2, fps=None)]
    assert strided == [1, 1, 1, 9, 1, 1]  # every other frame of 8 are 4, and 5 were wanted
    slower = [chosen.shape(k)[1] for k in chosen.assign(facts, stride=1, fps=12.5)]
    assert slower == strided


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"side": 8}, "multiple"), ({"max_ratio": 0.5}, "max_ratio"), ({"num_frames": []}, "num_frames")],
)
def test_senseless_buckets_are_refused(changed: dict[str, object], word: str) -> None:
    how = {"side": 512, "multiple": 64, "max_ratio": 2.0, "num_frames": [1], **changed}
    with pytest.raises(UserError, match=word):
        Buckets(**how)  # type: ignore[arg-type]


def order(counts: list[int], batch_size: int, seed: int = 3) -> BucketedOrder:
    names = np.repeat(np.arange(len(counts)), counts)
    names = names[permutation(len(names), 0)]
    lengths = [min(10, len(names) - start) for start in range(0, len(names), 10)]
    return BucketedOrder(lengths=lengths, window=2, seed=seed, buckets=names, batch_size=batch_size)


def test_the_order_is_pinned() -> None:
    names = np.arange(60) % 7 % 3
    pinned = BucketedOrder(lengths=[20, 10, 30], window=2, seed=3, buckets=names, batch_size=4)
    numbers = np.array([pinned[p] for p in range(400)], "<i8")
    assert hashlib.sha256(numbers.tobytes()).hexdigest()[:16] == "b59b647284bab0be"


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("counts", [[30, 11, 2], [5], [1, 1, 1]])
def test_batches_are_of_one_bucket_and_each_sample_comes_once(counts: list[int], batch_size: int) -> None:
    drawn = order(counts, batch_size)
    bucket_of = {int(i): k for k, members in enumerate(drawn.members) for i in members}
    batches = 20 * sum(counts) // batch_size + 3
    stream = [drawn[p] for p in range(batches * batch_size)]
    turns: dict[int, list[int]] = {k: [] for k in range(len(counts))}
    for b in range(batches):
        batch = stream[b * batch_size : (b + 1) * batch_size]
        [k] = {bucket_of[i] for i in batch}
        turns[k] += batch
    for k, count in enumerate(counts):
        whole = [turns[k][e * count : (e + 1) * count] for e in range(len(turns[k]) // count)]
        assert all(sorted(epoch) == drawn.members[k].tolist() for epoch in whole)
        assert abs(len(turns[k]) / len(stream) - count / sum(counts)) <= 2 * batch_size / len(stream) * len(counts)


def test_a_far_batch_is_found_without_walking_there() -> None:
    drawn = BucketedOrder(lengths=[1000] * 1000, window=8, seed=1, buckets=np.arange(1_000_000) % 7, batch_size=256)
    assert len({drawn[p] % 7 for p in range(987_654_321 * 256, 987_654_321 * 256 + 256)}) == 1


def test_batches_are_stacked_and_hold_what_they_should(source: Source) -> None:
    shapes = set()
    for batch in source.loader(seed=0, batch_size=4, steps=30):
        assert batch.frames is not None
        shapes.add(tuple(batch.frames.shape[1:]))
    assert {shape[0] for shape in shapes} == {1, 4}
    assert len({shape[2:] for shape in shapes}) == 3
    assert source.bad.keys() == {"10"}


def test_workers_ranks_and_restarts_change_nothing(source: Source, folder: Path) -> None:
    whole = said(list(source.loader(seed=7, batch_size=4, steps=20)))
    assert said(list(source.loader(seed=7, batch_size=4, steps=20, num_workers=2))) == whole
    for consumed in (1, 9, 19):
        again = Source(shards=str(folder), buckets=buckets(), window=2, max_bad_fraction=0.1)
        assert said(list(again.loader(seed=7, batch_size=4, steps=20, consumed=consumed))) == whole[consumed:]
    ranks = [list(source.loader(seed=7, batch_size=4, steps=20, rank=r, world_size=2)) for r in (0, 1)]
    assert [[*a.keys, *b.keys] for a, b in zip(*ranks, strict=True)] == [keys for keys, *_ in whole]


def test_a_substitute_is_of_the_same_bucket(source: Source, folder: Path) -> None:
    bad: dict[int, object] = {}
    row = source.row(10, 0, 0, bad)  # type: ignore[arg-type]
    assert list(bad) == [10]
    assert (row.key, SIZES[10 % 7]) == ("12", WIDE)  # 11 is a square, 12 as wide as 10
    with pytest.raises(UserError, match="10.*does not decode"):
        list(Source(shards=str(folder), buckets=buckets()).loader(seed=0, batch_size=4, steps=20))


def test_the_cache_gives_the_batches_of_the_pixels(source: Source, folder: Path, tmp_path: Path) -> None:
    def encode(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"half": frames[..., ::2, ::2]}

    whole = Source(shards=str(folder / "{000000,000002}.tar"), buckets=buckets())
    encode_shards(whole, tmp_path / "c", encode=encode, encoder_id="x", batch_size=5, dtype=torch.float32)
    cached = Source(shards=str(tmp_path / "c"), buckets=buckets())
    pairs = zip(*(s.loader(seed=1, batch_size=3, steps=12) for s in (whole, cached)), strict=True)
    for pixels, batch in pairs:
        assert batch.keys == pixels.keys
        frames = pixels.to("cpu").frames
        assert frames is not None
        still = frames[:, :1]  # of a clip the cache has the middle window, the pixels a drawn one
        if frames.shape[1] == 1:
            assert torch.equal(batch.encoded["half"], encode(still)["half"])
        assert batch.encoded["half"].shape == encode(frames)["half"].shape


def test_a_mixture_takes_turns_by_whole_batches(source: Source, folder: Path) -> None:
    plain = Source(shards=str(folder / "000000.tar"), size=16, num_frames=1)
    mixed = Mixture(sources={"shapes": source, "plain": plain}, weights={"shapes": 1.0, "plain": 1.0})
    plain_shapes = 0
    for batch in mixed.loader(seed=0, batch_size=4, steps=40):
        assert batch.frames is not None
        plain_shapes += batch.frames.shape[3:] == (16, 16)
    assert 10 < plain_shapes < 30


def test_size_and_buckets_are_one_or_the_other(folder: Path) -> None:
    with pytest.raises(UserError, match="buckets beside num_frames 1"):
        Source(shards=str(folder), buckets=buckets(), num_frames=1)


def test_a_config_builds_them(folder: Path) -> None:
    words = ["dataset=bucketed", f"dataset.shards={folder}", "dataset.buckets.side=32", "dataset.buckets.multiple=8"]
    cfg = config.compose("pretrain_clip", words)
    assert config.check(cfg) == []
    assert config.build(cfg.dataset).buckets.sizes == buckets().sizes
