"""One tar file: written so that the same input gives the same bytes, and read header by header with every fault named.

Holds the ustar layout and nothing about samples; which members make a sample is `index.py`. We read headers ourselves
because a tar reader that meets a damaged header stops as if the archive had ended, and the rest is silently lost.
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmtrain.errors import UserError

BLOCK = 512
_CHUNK = 1 << 20
_SKIPPED = b"5g"  # folders, and headers that hold for the whole archive


@dataclass(frozen=True)
class Member:
    """A file inside a tar: where its bytes lie and their checksum."""

    name: str
    offset: int  # bytes from the start of the tar
    size: int  # bytes
    crc32: int


class TarWriter:
    """Writes one tar under a staging name; `close` promotes it to its own, `abandon` leaves nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.staging = path, path.with_name(f".{path.name}.staging")
        self.bytes_written = 0
        self._file = open(self.staging, "wb")  # noqa: SIM115  (closed by close or abandon)

    def add(self, name: str, payload: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(payload), 0o644, 0
        try:
            header = info.tobuf(format=tarfile.USTAR_FORMAT)
        except ValueError as why:
            raise UserError(
                f"shard member {name!r}", str(why), "a name that ustar can hold", "shorten the key"
            ) from why
        blocks = header + payload + bytes(-len(payload) % BLOCK)
        self._file.write(blocks)
        self.bytes_written += len(blocks)

    def close(self) -> None:
        self._file.write(bytes(2 * BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.staging, self.path)

    def abandon(self) -> None:
        self._file.close()
        self.staging.unlink(missing_ok=True)


def scan(path: Path, visit: Callable[[Member, bytes], None]) -> str:
    """One pass that reads every byte: calls ``visit`` with each member and its content, in order.

    Returns:
        The sha256 of the whole file.

    Raises:
        UserError: naming the tar, the member and the fault: truncation, a damaged header, no end marker, bytes after
            it, or a kind of member that a shard cannot hold.
    """
    with open(path, "rb") as file:
        reader = _Reader(path, file)
        for member, payload in reader.members():
            visit(member, payload)
        return reader.digest.hexdigest()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.digest = path, file, hashlib.sha256()
        self.position, self.last = 0, ""

    def fault(self, came: str, fix: str = "copy the shard again from its source, or write it again") -> UserError:
        after = f", after member {self.last!r}" if self.last else ""
        return UserError(f"shard {self.path}", f"{came} at byte {self.position}{after}", "a whole tar was wanted", fix)

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        self.digest.update(data)
        self.position += len(data)
        return data

    def members(self) -> Iterator[tuple[Member, bytes]]:
        extended: dict[str, str] = {}  # what a pax or GNU header says about the next member
        while (header := self.header()) is not None:
            name, size, kind = header
            if kind in (b"x", b"L"):
                extended |= self.extension(kind, size)
                continue
            name = extended.get("path", name)
            size = int(extended.get("size", size))
            extended = {}
            if kind in _SKIPPED:
                self.payload(name, size)
            elif kind in (b"0", b"\0"):
                yield self.payload(name, size)
                self.last = name
            else:
                raise self.fault(f"member {name!r} is a link or a special file", "pack plain files only")

    def header(self) -> tuple[str, int, bytes] | None:
        """Name, size and type of the next member; None at a proper end of the archive."""
        start, block = self.position, self.take(BLOCK)
        if not block:
            raise self.fault("the file ends without an end marker (truncated)")
        if len(block) < BLOCK:
            raise self.fault("the file ends inside a header (truncated)")
        if not block.strip(b"\0"):
            self.end()
            return None
        try:
            stated = int(block[148:156].strip(b"\0 ") or b"0", 8)
            size = _number(block[124:136])
        except ValueError:
            stated, size = -1, 0
        if stated != sum(block) - sum(block[148:156]) + 8 * 32:
            self.position = start
            raise self.fault("a damaged header (its checksum does not match)")
        name = block[:100].split(b"\0")[0]
        prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        return self.text(prefix + b"/" + name if prefix else name), size, block[156:157]

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as why:
            raise self.fault(f"a member name that is not UTF-8 ({raw!r})", "pack it again with UTF-8 names") from why

    def end(self) -> None:
        if len(second := self.take(BLOCK)) < BLOCK or second.strip(b"\0"):
            raise self.fault("half an end marker (truncated)")
        while rest := self.take(_CHUNK):
            if rest.strip(b"\0"):
                raise self.fault("more data after the end marker", "pack it again; joined tars are not one shard")

    def payload(self, name: str, size: int) -> tuple[Member, bytes]:
        offset, parts, left = self.position, [], size
        while left:
            data = self.take(min(left, _CHUNK))
            if not data:
                raise self.fault(f"member {name!r} is cut: {size - left} of {size} bytes are there (truncated)")
            parts.append(data)
            left -= len(data)
        if len(self.take(-size % BLOCK)) < -size % BLOCK:
            raise self.fault(f"the file ends inside the padding of {name!r} (truncated)")
        content = b"".join(parts)
        return Member(name, offset, size, zlib.crc32(content)), content

    def extension(self, kind: bytes, size: int) -> dict[str, str]:
        if size > _CHUNK:
            raise self.fault(f"an extension header of {size} bytes")
        _, raw = self.payload("extension header", size)
        if kind == b"L":
            return {"path": self.text(raw.rstrip(b"\0"))}
        return self.pax(raw)

    def pax(self, raw: bytes) -> dict[str, str]:
        """Records ``length key=value\\n``; only path and size matter here."""
        found: dict[str, str] = {}
        while raw:
            length, _, rest = raw.partition(b" ")
            count = int(length) if length.isdigit() else 0
            name, equals, value = raw[len(length) + 1 : count - 1].partition(b"=")
            if not 0 < count <= len(raw) or not equals or not rest:
                raise self.fault("a damaged extension header")
            if name in (b"path", b"size"):
                found[name.decode()] = self.text(value)
            raw = raw[count:]
        if not found.get("size", "0").isdigit():
            raise self.fault("a damaged extension header")
        return found


def _number(field: bytes) -> int:
    """An octal number, or a binary one whose first bit is set (files above 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 95) - 1)
    return int(field.strip(b"\0 ") or b"0", 8)
