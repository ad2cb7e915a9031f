"""Laws of remote shards: copies equal the originals, come once, go on where they broke off; failures name the URL."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from mmtrain import cli
from mmtrain.data import remote
from mmtrain.data.remote import Job
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from tests.laws.http_server import Server, serving


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("remote") / "w", split="train", count=12, seed=5, shard_size=4)


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "CHUNK", 20_000)
    with serving(world) as running:
        yield running


def keys(source: Source) -> list[list[str]]:
    return [b.keys for b in source.loader(seed=1, batch_size=4, steps=5, num_workers=1)]


def opened(shards: str, copies: Path) -> Source:
    return Source(shards=shards, copies=str(copies), num_frames=2, size=16)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("pattern", ["/{000000..000002}.tar", "/"])
def test_remote_shards_are_the_local_ones_and_come_once(
    server: Server, world: Path, tmp_path: Path, pattern: str, ranges: bool
) -> None:
    server.ranges = ranges
    local, source = opened(str(world), tmp_path), opened(server.url + pattern, tmp_path)
    assert source.fingerprint == local.fingerprint
    assert keys(source) == keys(local)
    assert ranges is (server.sent == sum(p.stat().st_size for p in world.glob("*.tar")))
    before = server.sent
    assert opened(server.url + pattern, tmp_path).fingerprint == local.fingerprint
    assert server.sent == before


def test_the_verbs_index_and_check_what_is_behind_a_url(
    server: Server, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site").mkdir()
    whole = (world / "000000.tar").read_bytes()
    (tmp_path / "site" / "0.tar").write_bytes(whole)
    (tmp_path / "site" / "1.tar").write_bytes(whole[:-9000])
    server.folder, copies = tmp_path / "site", ["--copies", str(tmp_path / "c")]
    assert cli.main(["shards", "index", f"{server.url}/0.tar", *copies]) == 0
    fingerprint = opened(str(tmp_path / "site" / "0.tar"), tmp_path).fingerprint
    assert f"/0.tar: 4 samples in 1 shards, fingerprint {fingerprint}" in capsys.readouterr().out
    report = tmp_path / "report.json"
    assert cli.main(["shards", "check", f"{server.url}/", *copies, "--json", str(report)]) == 1
    found = json.loads(report.read_text())
    assert (found["path"], found["shards"], found["samples"]) == (f"{server.url}/", 1, 4)
    assert "1.tar" in found["faults"][0]


def test_a_server_that_fails_or_cuts_is_asked_again(server: Server, world: Path, tmp_path: Path) -> None:
    server.failures, server.cuts = 2, 1
    assert (
        opened(f"{server.url}/000000.tar", tmp_path).index.shards[0].sha256
        == opened(str(world), tmp_path).index.shards[0].sha256
    )


def test_a_copy_that_broke_off_goes_on_where_it_stopped(server: Server, world: Path, tmp_path: Path) -> None:
    size = (world / "000000.tar").stat().st_size
    fetch, calls = remote._patiently, []

    def breaking(url: str, get: object) -> object:
        calls.append(url)
        if len(calls) == 3:  # the size, a chunk, then the cable
            raise KeyboardInterrupt
        return fetch(url, get)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(remote, "_patiently", breaking)
        remote.copy_all(Job([f"{server.url}/000000.tar"], str(tmp_path)))
    assert 0 < server.sent < size
    opened(f"{server.url}/000000.tar", tmp_path)
    assert server.sent == size  # no byte came twice
    assert not list(tmp_path.glob("*.part"))


def test_equal_base_names_and_changed_shards_are_told_apart(server: Server, world: Path, tmp_path: Path) -> None:
    for name, of in (("a", "000000.tar"), ("b", "000001.tar")):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "0.tar").write_bytes((world / of).read_bytes())
    server.folder = tmp_path / "site"
    source = opened(f"{server.url}/{{a,b}}/0.tar", tmp_path / "c")
    assert source.keys == opened(str(world), tmp_path).keys[:8]
    (tmp_path / "site" / "a" / "0.tar").write_bytes((world / "000002.tar").read_bytes())
    assert opened(f"{server.url}/a/0.tar", tmp_path / "c").keys == opened(str(world), tmp_path).keys[8:]


def test_failures_name_the_url(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/nope\.tar: no shard is there"):
        opened(f"{server.url}/nope.tar", tmp_path)
    with pytest.raises(UserError, match=r"nothere://x/.*: Protocol not known"):
        opened("nothere://x/0.tar", tmp_path)
    server.failures = 10**6
    with pytest.raises(UserError, match=r"/000000\.tar: cannot be read .*503.* tried 4 times"):
        opened(f"{server.url}/000000.tar", tmp_path)


def test_any_protocol_of_fsspec_is_read_alike(world: Path, tmp_path: Path) -> None:
    """Local files by URL stand for those whose servers cannot be had here."""
    source = opened(f"file://{world}/{{000000..000002}}.tar", tmp_path)
    assert source.fingerprint == opened(str(world), tmp_path).fingerprint
    assert source.index.shards[0].path.is_relative_to(tmp_path)


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/0.tar", "gcsfs"), ("s3://bucket/0.tar", "s3fs")])
def test_a_protocol_whose_package_is_missing_says_which_extra(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{url}: .*not installed.*pip install 'mmtrain\[remote\]'"):
        remote._open(url)


def test_a_hub_data_set_is_named_by_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    system, path = remote._open("hf://datasets/someone/clips/000000.tar")
    assert (system.protocol, path) == ("hf", "datasets/someone/clips/000000.tar")


def test_shards_in_an_s3_bucket(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    try:
        bucket = s3fs.S3FileSystem(endpoint_url=endpoint)
        bucket.mkdir("shards")
        for path in world.glob("*.tar"):
            bucket.put(str(path), f"shards/world/{path.name}")
        for pattern in ("s3://shards/world/", "s3://shards/world/{000000..000002}.tar"):
            source = opened(pattern, tmp_path)
            assert source.fingerprint == opened(str(world), tmp_path).fingerprint
        assert keys(source) == keys(opened(str(world), tmp_path))
        assert len([json.loads(p.read_text()) for p in tmp_path.glob("*.json")]) == 3
    finally:
        running.stop()
