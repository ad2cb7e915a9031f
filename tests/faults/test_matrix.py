"""The fault matrix: every way in which shards go wrong, and that `check` names the shard, the fault and what to do.

With the index beside the shards, and without it, as if they had come from elsewhere; sizes and times are put back, so
that nothing but reading can tell.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtrain import cli
from mmtrain.data.check import check, readable
from mmtrain.data.index import SIDECAR, Index
from mmtrain.data.shards import ShardWriter
from mmtrain.data.source import Source
from mmtrain.errors import UserError

Rows = list[tuple[str, bytes]]


def png(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "s", max_samples=4) as writer:
        for i in range(8):
            writer.write(f"{i:03d}", {"png": png(i), "txt": b"a caption"})
    return tmp_path / "s"


@contextmanager
def unseen(path: Path) -> Iterator[None]:
    """Changes that leave the time as it was."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncated(at: Callable[[int, int], int]) -> Callable[[Path], None]:
    """Cuts the shard at a place given by where the payload of its last image begins, and by its size."""

    def harm(path: Path) -> None:
        member = Index.of(path.parent).members(7)["png"]
        os.truncate(path, at(member.offset, member.size))

    return harm


def flipped(suffix: str, offset: int) -> Callable[[Path], None]:
    """Changes one byte, counted from where sample 006's payload begins."""

    def harm(path: Path) -> None:
        at = Index.of(path.parent).members(6)[suffix].offset + offset
        with unseen(path), open(path, "r+b") as file:
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), at)

    return harm


def rewritten(change: Callable[[Rows], Rows]) -> Callable[[Path], None]:
    """Writes the shard again with its members changed."""

    def harm(path: Path) -> None:
        with tarfile.open(path) as archive:
            rows = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
        with unseen(path), tarfile.open(path, "w") as archive:
            for name, payload in change(rows):
                info = tarfile.TarInfo(name)
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))

    return harm


def emptied(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(bytes(size))


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut in a header": (truncated(lambda at, size: at - 300), "inside a header (truncated)", "'006.txt'"),
    "cut in a payload": (truncated(lambda at, size: at + 99), "is cut: 99 of", "'007.png'"),
    "cut in the padding": (truncated(lambda at, size: at + size + 1), "inside the padding of", "'007.png'"),
    "cut between members": (truncated(lambda at, size: at - 512), "without an end marker (truncated)", "'006.txt'"),
    "cut in the end marker": (
        truncated(lambda at, size: at + -(-size // 512) * 512 + 1024 + 512),
        "half an end marker",
        "'007.txt'",
    ),
    "header flipped": (flipped("png", -512 + 3), "a damaged header (its checksum does not match)", "'005.txt'"),
    "keys reordered": (rewritten(lambda rows: [*rows[:2], *rows[3:], rows[2]]), "its key came before", "'005.png'"),
    "base name twice": (rewritten(lambda rows: [*rows, ("007.txt", b"again")]), "came twice for one key", "'007.txt'"),
    "image missing": (rewritten(lambda rows: [row for row in rows if row[0] != "006.png"]), "", "006"),
    "caption missing": (rewritten(lambda rows: [row for row in rows if row[0] != "006.txt"]), "", "006"),
    "key in two shards": (rewritten(lambda rows: [(n.replace("007", "001"), data) for n, data in rows]), "", "001"),
    "no bytes": (emptied(0), "truncated", ""),
    "no members": (emptied(10240), "holds no samples", ""),
    "not a tar": (lambda path: path.write_bytes(b"<html>" * 999), "a damaged header", ""),
    "two tars joined": (
        lambda path: path.write_bytes(path.read_bytes() * 2),
        "after the end marker",
        "'007.txt'",
    ),
}
"""What harms the second shard, what is said of it, and the member that is named (the last sound one, for a header)."""

ONLY_INDEXED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "payload flipped": (flipped("png", 90), "changed since it was indexed", "006.png"),
    "caption flipped": (flipped("txt", 2), "changed since it was indexed", "006.txt"),
    "samples swapped": (rewritten(lambda rows: [*rows[2:4], *rows[:2], *rows[4:]]), "they lie in another order", ""),
    "other shard of the same keys": (
        rewritten(lambda rows: [(n, data[::-1]) for n, data in rows]),
        "changed since it was indexed",
        "004.png",
    ),
    "shard gone": (lambda path: path.unlink(), "missing, though the index lists it", ""),
}
"""Without an index there is nothing to compare with."""


@pytest.mark.parametrize("fault", [*FAULTS, *ONLY_INDEXED])
@pytest.mark.parametrize("indexed", [True, False])
def test_check_names_every_fault(folder: Path, fault: str, indexed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Shard, member and fault in one line; and what to do."""
    harm, said, member = (FAULTS | ONLY_INDEXED)[fault]
    if fault in ONLY_INDEXED and not indexed:
        pytest.skip("nothing to compare with")
    harm(folder / "000001.tar")
    if not indexed:
        (folder / SIDECAR).unlink()
    assert cli.main(["shards", "check", str(folder)]) == 1
    text = capsys.readouterr().out
    assert text.endswith("NOT ok\n")
    lines = [line for line in text.splitlines() if f"{folder}/000001.tar" in line and member in line]
    assert any(said in line or (indexed and "changed since it was indexed" in line) for line in lines), text
    assert any(word in text for word in ("copy the shard", "restore", "pack", "put it back", "write it", "add it"))


@pytest.mark.parametrize("fault", [*FAULTS, *ONLY_INDEXED])
@pytest.mark.parametrize("indexed", [True, False])
def test_training_is_never_silent_about_any(folder: Path, fault: str, indexed: bool) -> None:
    """It does not open, or it stops within an epoch; unless every sample is there and right all the same."""
    harm, _, member = (FAULTS | ONLY_INDEXED)[fault]
    if fault in ONLY_INDEXED and not indexed:
        pytest.skip("nothing to compare with")
    if (fault == "key in two shards" and not indexed) or (fault == "header flipped" and indexed):
        pytest.skip("both samples of the key are trained on; an index needs no header")
    harm(folder / "000001.tar")
    if not indexed:
        (folder / SIDECAR).unlink()
    with pytest.raises(UserError) as caught:
        source = Source(shards=str(folder))
        list(source.loader(seed=0, batch_size=4, steps=2))
    assert "000001.tar" in str(caught.value)
    assert member.strip("'").split(".")[0] in str(caught.value)


def test_a_sound_folder_is_ok(folder: Path) -> None:
    """What the matrix would be worth nothing without."""
    report = check(folder)
    assert report["ok"], readable(report)


@pytest.mark.parametrize("sha256", ["0" * 64])
def test_an_index_of_other_contents(folder: Path, sha256: str) -> None:
    """The index states a sha256, and the shard has another."""
    with np.load(folder / SIDECAR) as file:
        columns = {name: file[name] for name in file.files}
    right = Index.of(folder).shards[1].sha256
    head = columns["head"].tobytes().decode().replace(right, sha256)
    np.savez(folder / SIDECAR, **columns | {"head": np.frombuffer(head.encode(), np.uint8)})
    [fault] = check(folder)["faults"]
    assert "000001.tar: changed since it was indexed (sha256; members that differ: none" in fault
    assert sha256[:12] in fault
    assert "restore the shard, or delete" in fault


def test_a_shard_that_is_named_and_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"000002.tar: no shard is there"):
        check(f"{folder}/{{000000..000002}}.tar")
