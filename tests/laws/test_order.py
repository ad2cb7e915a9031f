"""Laws of the order: a pure function of (seed, epoch, shards), the same for any workers, ranks and restarts.

The digests are golden: a change that moves one of them makes every old checkpoint unresumable.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain.batch import Batch, to_unit
from mmtrain.data.order import Order, permutation
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source

COUNT = 37


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = write_world(tmp_path_factory.mktemp("world") / "s", split="train", count=COUNT, seed=5, shard_size=6)
    return Source(shards=str(folder), num_frames=4, size=16, window=3)


def digest(numbers: object) -> str:
    return hashlib.sha256(np.asarray(numbers, "<i8").tobytes()).hexdigest()[:16]


def said(batches: list[Batch]) -> list[tuple[object, ...]]:
    return [(b.keys, b.positions, b.captions, b.frames.numpy().tobytes()) for b in batches if b.frames is not None]


def test_permutation_is_pinned() -> None:
    assert permutation(10, 0, 0).tolist() == [4, 2, 0, 9, 8, 5, 6, 1, 7, 3]
    assert digest(permutation(100_000, 7, "a", 3)) == "4e462492280ab20d"


@pytest.mark.parametrize(
    ("window", "pinned"), [(1, "88b8efa0707671f3"), (2, "ecffa38ddcd90ec9"), (8, "943609c208e9dbe9")]
)
def test_order_is_pinned(window: int, pinned: str) -> None:
    order = Order(lengths=[5, 7, 3, 11, 1], window=window, seed=3)
    assert digest([order[p] for p in range(3 * 27)]) == pinned


@pytest.mark.parametrize("window", [1, 2, 3, 100])
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [5, 7, 3, 11, 1], [100] * 7])
def test_each_sample_comes_once_an_epoch(lengths: list[int], window: int) -> None:
    total = sum(lengths)
    order = Order(lengths=lengths, window=window, seed=11)
    epochs = [[order[p] for p in range(e * total, (e + 1) * total)] for e in (0, 1, 2, 1000)]
    assert all(sorted(e) == list(range(total)) for e in epochs)
    if total > 20:
        assert len({tuple(e) for e in epochs}) == 4


def test_windows_keep_reading_local() -> None:
    order = Order(lengths=[10] * 20, window=4, seed=0)
    shards = [{order[p] // 10 for p in range(start, start + 40)} for start in range(0, 200, 40)]
    assert [len(s) for s in shards] == [4] * 5
    inside = [order[p] // 10 for p in range(40)]
    assert inside != sorted(inside, key=inside.index)  # its samples are mixed, not shard after shard


def test_permutations_are_fair() -> None:
    places = np.array([np.argsort(permutation(8, seed)) for seed in range(4000)])
    counts = np.array([np.bincount(places[:, i], minlength=8) for i in range(8)])
    assert ((counts - 500) ** 2 / 500).sum(axis=1).max() < 30  # chi-squared, 7 degrees: above 30 once in 10 000


def test_a_far_position_is_found_without_walking_there() -> None:
    order = Order(lengths=[1000] * 1000, window=8, seed=1)
    assert 0 <= order[987_654_321_000] < 1_000_000


def test_workers_change_nothing(source: Source) -> None:
    runs = [said(list(source.loader(seed=2, batch_size=8, steps=11, num_workers=w))) for w in (0, 1, 2)]
    assert len(runs[0]) == 11
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_same_batches(source: Source, world_size: int) -> None:
    whole = list(source.loader(seed=2, batch_size=8, steps=11))
    ranks = [
        list(source.loader(seed=2, batch_size=8, steps=11, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        joined = [part for rank in said(parts) for part in [rank]]
        assert batch.keys == [k for keys, _, _, _ in joined for k in keys]  # type: ignore[attr-defined]
        assert batch.positions == [p for part in parts for p in part.positions]
        assert batch.captions == [c for part in parts for c in part.captions]
        assert said([batch])[0][3] == b"".join(frames for _, _, _, frames in joined)  # type: ignore[misc]


@pytest.mark.parametrize("consumed", [1, 4, 5, 10])  # an epoch ends inside the fifth batch
def test_seeking_equals_skipping(source: Source, consumed: int) -> None:
    whole = list(source.loader(seed=2, batch_size=8, steps=11))
    loader = source.loader(seed=2, batch_size=8, steps=11, consumed=consumed)
    assert len(loader) == 11
    assert said(list(loader)) == said(whole[consumed:])


def test_batches_run_over_epochs_without_a_ragged_end(source: Source) -> None:
    batches = list(source.loader(seed=2, batch_size=8, steps=37))
    assert [b.positions for b in batches] == [list(range(8 * i, 8 * i + 8)) for i in range(37)]
    seen = [key for b in batches for key in b.keys]
    for epoch in range(8):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == source.keys


def test_seeds_differ(source: Source) -> None:
    first, second = (next(iter(source.loader(seed=s, batch_size=16, steps=1))) for s in (2, 3))
    assert first.keys != second.keys


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bytes_travel_and_are_floats_on_the_device(source: Source, num_workers: int) -> None:
    """The same bits as if each sample had been made into floats where it was decoded, and in the same order in memory,
    by which a convolution chooses how it sums."""
    [batch] = source.loader(seed=2, batch_size=8, steps=1, num_workers=num_workers)
    assert batch.frames is not None
    assert batch.frames.dtype == torch.uint8
    assert batch.frames.shape == (8, 4, 3, 16, 16)
    wanted = torch.stack([to_unit(clip.permute(0, 2, 3, 1).numpy().copy()) for clip in batch.frames])
    there = batch.to("cpu")
    assert there.frames is not None
    assert torch.equal(there.frames, wanted)
    assert there.frames.stride() == wanted.stride()
    assert torch.equal(there.to("cpu").frames, wanted), "once is enough"
    assert batch.part(slice(2, 4)).to("cpu").frames.equal(wanted[2:4])


def test_captions_and_clips_are_drawn_by_position(source: Source) -> None:
    batches = list(source.loader(seed=2, batch_size=COUNT, steps=6))
    told: dict[str, set[str]] = {}
    clips: dict[str, set[bytes]] = {}
    for batch in batches:
        assert batch.frames is not None
        for key, caption, frames in zip(batch.keys, batch.captions, batch.frames, strict=True):
            told.setdefault(key, set()).add(caption)
            clips.setdefault(key, set()).add(frames.numpy().tobytes())
    for i, key in enumerate(source.keys):
        assert told[key] <= set(source.sample(i).captions)
    assert sum(len(t) > 1 for t in told.values()) > COUNT / 2
    assert sum(len(c) > 1 for c in clips.values()) > COUNT / 2


def test_a_copy_of_the_shards_elsewhere_is_the_same_data(source: Source, tmp_path: Path) -> None:
    for shard in source.index.shards:
        (tmp_path / shard.path.name).write_bytes(shard.path.read_bytes())
    copy = Source(shards=str(tmp_path), num_frames=4, size=16, window=3)
    assert copy.fingerprint == source.fingerprint
    runs = [said(list(s.loader(seed=9, batch_size=4, steps=3))) for s in (source, copy)]
    assert runs[0] == runs[1]
