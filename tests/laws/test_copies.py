"""Laws of copies of remote shards: a limit and fetching ahead change no batch, and what is in use is never removed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtrain.data import remote
from mmtrain.data.room import held, reserve
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from tests.laws.http_server import Server, serving

WINDOW = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("copies") / "w", split="train", count=12, seed=5, shard_size=2)


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    with serving(world) as running:
        yield running


def room(world: Path, windows: int) -> float:
    """Gigabytes that so many windows can take."""
    return sum(sorted(p.stat().st_size for p in world.glob("*.tar"))[-WINDOW * windows :]) / 1e9


def opened(shards: str, copies: Path, **more: object) -> Source:
    return Source(shards=shards, copies=str(copies), num_frames=2, size=16, window=WINDOW, **more)  # type: ignore[arg-type]


def keys(source: Source, consumed: int, num_workers: int) -> list[list[str]]:
    loader = source.loader(seed=1, batch_size=3, steps=4, consumed=consumed, num_workers=num_workers)
    return [batch.keys for batch in loader]


def taken(copies: Path) -> int:
    return sum(path.stat().st_size for path in [*copies.glob("*/*.tar"), *copies.glob("*.part")])


@pytest.mark.parametrize(("prefetch", "consumed", "workers"), [(0, 0, 0), (1, 2, 2)])
def test_a_limit_of_one_window_changes_no_batch(
    server: Server, world: Path, tmp_path: Path, prefetch: int, consumed: int, workers: int
) -> None:
    local, limit = opened(str(world), tmp_path), room(world, 1)
    source = opened(f"{server.url}/", tmp_path, max_copies_gb=limit, prefetch=prefetch)
    assert source.fingerprint == local.fingerprint
    assert taken(tmp_path) <= limit * 1e9
    assert keys(source, consumed, workers) == keys(local, 0, 0)[consumed:]
    assert taken(tmp_path) <= limit * 1e9


def test_the_next_window_is_fetched_before_it_is_needed(server: Server, world: Path, tmp_path: Path) -> None:
    source = opened(f"{server.url}/", tmp_path, max_copies_gb=room(world, 2))
    assert source.copies is not None
    batches = iter(source.loader(seed=1, batch_size=4, steps=9))
    found = [next(batches).keys]
    for process in source.copies._running:
        process.wait()
    server.folder = tmp_path / "gone"
    found.append(next(batches).keys)  # the first window has 4 samples: these are of the second
    assert found == [b.keys for b in opened(str(world), tmp_path).loader(seed=1, batch_size=4, steps=2)]


def test_what_is_known_of_shards_outlives_their_copies(server: Server, world: Path, tmp_path: Path) -> None:
    limit = room(world, 1)
    first = opened(f"{server.url}/", tmp_path, max_copies_gb=limit)
    sent = server.sent
    assert opened(f"{server.url}/", tmp_path, max_copies_gb=limit).fingerprint == first.fingerprint
    assert server.sent == sent
    assert not all(shard.path.exists() for shard in first.index.shards)


def test_an_uploaded_index_is_enough_to_start(server: Server, world: Path, tmp_path: Path) -> None:
    """No shard is read for it; each is compared with it when it is copied."""
    local = opened(str(world), tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    for path in [*world.glob("*.tar"), world / "index.npz"]:
        (site / path.name).write_bytes(path.read_bytes())
    server.folder, server.indexed = site, True
    source = opened(f"{server.url}/", tmp_path / "c", max_copies_gb=room(world, 1), prefetch=0)
    assert source.fingerprint == local.fingerprint
    assert (server.sent, taken(tmp_path / "c")) == ((world / "index.npz").stat().st_size, 0)
    assert keys(source, 0, 0) == keys(local, 0, 0)
    stale = next(n for n, shard in enumerate(source.index.shards) if not shard.path.exists())
    payload = bytearray((site / f"{stale:06d}.tar").read_bytes())
    payload[600] ^= 1
    (site / f"{stale:06d}.tar").write_bytes(payload)
    with pytest.raises(UserError, match=rf"{stale:06d}\.tar: changed since the run began"):
        source.raw(2 * stale)


def test_a_limit_smaller_than_a_window_is_refused(server: Server, world: Path, tmp_path: Path) -> None:
    one = max(p.stat().st_size for p in world.glob("*.tar"))
    with pytest.raises(UserError, match=r"a window of 2 shards takes up to [\d,]+ bytes, the limit .*max_copies_gb"):
        opened(f"{server.url}/", tmp_path / "a", max_copies_gb=one / 1e9)
    with pytest.raises(UserError, match=r"0\.tar: it has [\d,]+ bytes.*max_copies_gb"):
        opened(f"{server.url}/000000.tar", tmp_path / "b", max_copies_gb=1e-6)


def test_a_shard_that_changed_while_it_was_not_here_stops_the_run(server: Server, world: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for path in world.glob("*.tar"):
        (site / path.name).write_bytes(path.read_bytes())
    server.folder = site
    source = opened(f"{server.url}/", tmp_path / "c", max_copies_gb=room(world, 1), prefetch=0)
    number = next(n for n, shard in enumerate(source.index.shards) if not shard.path.exists())
    (site / f"{number:06d}.tar").write_bytes((world / f"{(number + 1) % 6:06d}.tar").read_bytes())
    with pytest.raises(UserError, match=rf"{number:06d}\.tar: changed since the run began"):
        source.raw(2 * number)


def test_the_copy_held_longest_ago_goes_first_and_one_in_use_never(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(b"x" * 10)
        with held(tmp_path, name):
            pass
        os.utime(tmp_path / f"{name}.lock", (age, age))
    (tmp_path / "e.v.10.part").write_bytes(b"x")  # broken off in the middle: its whole size counts

    def there() -> str:
        return "".join(sorted(path.parent.name for path in tmp_path.glob("*/*.tar")))

    with held(tmp_path, "a"):
        os.utime(tmp_path / "a.lock", (0, 0))
        os.utime(tmp_path / "b.lock", (1, 1))
        part = tmp_path / "f.v.10.part"
        assert reserve(tmp_path, part, 10, limit=30, keep=["c"], patient=False)
        assert (there(), part.exists()) == ("ac", True)
        assert not reserve(tmp_path, tmp_path / "g.v.15.part", 15, limit=20, keep=["c"], patient=False)
        assert there() == "ac"
    assert reserve(tmp_path, tmp_path / "h.v.10.part", 10, limit=20, keep=["c"], patient=False)
    assert there() == "c"
