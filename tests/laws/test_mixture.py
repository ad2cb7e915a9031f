"""Laws of mixtures: who comes at a position follows from seed and position; each source keeps its own order."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmtrain import config
from mmtrain.batch import Batch
from mmtrain.data.mixture import Mixture
from mmtrain.data.order import BLOCK, MixedOrder, Order, shares
from mmtrain.data.shards import ShardWriter, encode_webp, write_world
from mmtrain.data.source import Source
from mmtrain.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("mixture")
    write_world(root / "train", split="train", count=17, seed=5, shard_size=4)
    write_world(root / "heldout", split="heldout", count=5, seed=6, shard_size=3)
    return {name: str(root / name) for name in ("train", "heldout")}


def sources(folders: dict[str, str], **how: float) -> dict[str, Source]:
    return {name: Source(shards=f, num_frames=2, size=16, window=2, **how) for name, f in folders.items()}  # type: ignore[arg-type]


def mixture(folders: dict[str, str], **how: float) -> Mixture:
    return Mixture(sources=sources(folders, **how), weights={"train": 3, "heldout": 1})


def said(batches: list[Batch]) -> list[object]:
    return [(b.keys, b.positions, b.captions, b.frames.numpy().tobytes()) for b in batches if b.frames is not None]


def test_the_order_of_a_mixture_is_pinned() -> None:
    orders = [Order(lengths=lengths, window=2, seed=3) for lengths in ([5, 7], [3], [11, 2])]
    order = MixedOrder(orders=orders, bases=[0, 12, 15], shares=shares([5, 1, 0.5]), seed=3)
    numbers = np.array([order[p] for p in range(9_000, 13_000)], "<i8")
    assert hashlib.sha256(numbers.tobytes()).hexdigest()[:16] == "589ad7a3be2991a9"


def test_weights_hold_exactly_over_a_block_and_nearly_over_a_few_batches() -> None:
    assert shares([2, 1, 1]) == [5000, 2500, 2500]
    assert sum(shares([1, 1, 1])) == sum(shares([0.3, 0.05, 1e-4, 7])) == BLOCK
    orders = [Order(lengths=[7], window=1, seed=0)] * 2
    order = MixedOrder(orders=orders, bases=[0, 7], shares=[7500, 2500], seed=0)
    for block in (0, 1, 12_345):
        owners = [order[p] >= 7 for p in range(block * BLOCK, (block + 1) * BLOCK)]
        assert sum(owners) == 2500
        assert 200 < sum(owners[:1000]) < 300


def test_each_source_keeps_its_own_order_over_its_own_epochs(folders: dict[str, str]) -> None:
    mixed = mixture(folders)
    seen = [key for b in mixed.loader(seed=7, batch_size=8, steps=25) for key in b.keys]
    for name, source in mixed.sources.items():
        own = [key.removeprefix(f"{name}/") for key in seen if key.startswith(f"{name}/")]
        order = source.order(7, 1)
        assert own == [source.keys[order[q]] for q in range(len(own))]
        assert len(own) > 2 * len(source), name


def test_workers_ranks_and_restarts_change_nothing(folders: dict[str, str]) -> None:
    mixed = mixture(folders)
    whole = said(list(mixed.loader(seed=7, batch_size=8, steps=9)))
    assert said(list(mixed.loader(seed=7, batch_size=8, steps=9, num_workers=2))) == whole
    for consumed in (1, 4, 8):
        assert said(list(mixture(folders).loader(seed=7, batch_size=8, steps=9, consumed=consumed))) == whole[consumed:]
    ranks = [list(mixed.loader(seed=7, batch_size=8, steps=9, rank=r, world_size=2)) for r in (0, 1)]
    joined = [[*a.keys, *b.keys] for a, b in zip(*ranks, strict=True)]
    assert joined == [keys for keys, *_ in whole]  # type: ignore[misc]


def test_the_order_in_which_sources_are_named_plays_no_part(folders: dict[str, str]) -> None:
    turned = Mixture(sources=dict(reversed(sources(folders).items())), weights={"heldout": 1, "train": 3})
    assert turned.fingerprint == mixture(folders).fingerprint
    first, second = (said(list(m.loader(seed=7, batch_size=8, steps=3))) for m in (turned, mixture(folders)))
    assert first == second


def test_equal_keys_of_different_samples_are_told_apart(tmp_path: Path) -> None:
    """A contrastive loss takes equal keys of a batch for one picture, which is its own positive."""

    def write(name: str, first: int, count: int) -> None:
        with ShardWriter(tmp_path / name, max_samples=9) as writer:
            for i in range(count):
                webp = encode_webp(np.full((1, 16, 16, 3), first + i, np.uint8), 25)
                files = {"webp": webp, "txt": f"{first + i}".encode(), "json": b'{"fps": 25, "num_frames": 1}'}
                writer.write(str(i), files)

    for name, first, count in (("x", 0, 2), ("y", 20, 3), ("z", 50, 4)):
        write(name, first, count)
    twice, once = Source(shards=f"{tmp_path}/{{x,y}}/000000.tar"), Source(shards=f"{tmp_path}/z/000000.tar")
    assert twice.keys == ["0/0", "0/1", "1/0", "1/1", "2"]  # each of its shards counts from 0
    assert once.keys == ["0", "1", "2", "3"]
    mixed = Mixture(sources={"a": twice, "b": once}, weights={"a": 1, "b": 1})
    [batch] = mixed.loader(seed=0, batch_size=64, steps=1)
    pairs = set(zip(batch.keys, batch.captions, strict=True))
    assert len(pairs) == len(set(batch.keys)) == len(set(batch.captions)) == 9


def test_bad_samples_are_counted_where_they_belong(folders: dict[str, str], tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", max_samples=9) as writer:
        for i in range(4):
            webp = b"" if i == 2 else encode_webp(np.full((2, 16, 16, 3), i, np.uint8), 25)
            writer.write(f"x{i}", {"webp": webp, "txt": b"x", "json": b'{"fps": 25, "num_frames": 2}'})
    names = {**folders, "x": str(tmp_path / "s")}
    mixed = Mixture(sources=sources(names, max_bad_fraction=0.25), weights=dict.fromkeys(names, 1.0))
    list(mixed.loader(seed=7, batch_size=8, steps=9, num_workers=1))
    assert mixed.bad_counts == {"x/000000.tar": {"does not decode": 1}}
    again = Mixture(sources=sources(names, max_bad_fraction=0.25), weights=dict.fromkeys(names, 1.0))
    again.note(mixed.replaced)
    assert again.bad_counts == mixed.bad_counts
    with pytest.raises(UserError, match="1 of 4 samples"):
        list(Mixture(sources=sources(names), weights=dict.fromkeys(names, 1.0)).loader(seed=7, batch_size=8, steps=9))


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"train": 1}, "name the same sources"),
        ({"train": 1, "heldout": -1}, "above 0"),
        ({"train": 0, "heldout": 0}, "above 0"),
        ({"train": 1, "heldout": float("nan")}, "above 0"),
        ({"train": 1, "heldout": 1e-6}, r"weights\.heldout: 1e-06 of 1.*one part in 10000"),
    ],
)
def test_weights_that_mean_nothing_are_refused(folders: dict[str, str], weights: dict[str, float], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Mixture(sources=sources(folders), weights=weights)


def test_a_config_builds_a_mixture(folders: dict[str, str]) -> None:
    words = ["dataset=mixture", "+dataset@dataset.sources.a=shards", "+dataset@dataset.sources.b=world_frames"]
    words += [f"dataset.sources.a.shards={folders['train']}", f"dataset.sources.b.shards={folders['heldout']}"]
    cfg = config.compose("pretrain_clip", [*words, "dataset.weights={a: 3, b: 1}"])
    assert config.check(cfg) == []
    assert Counter(config.build(cfg.dataset).shares) == {7500: 1, 2500: 1}
