"""A real HTTP server of files, which can be made to fail. No test of its own."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Files below a folder, with ranges; it can fail, cut answers short, or know no ranges."""

    folder: Path
    failures = 0  # answers that are 503 before one is good
    cuts = 0  # answers to come that end before their time
    ranges = True
    indexed = False  # whether an index beside the shards is served too
    sent = 0  # bytes of shards
    url = ""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path = self.server.folder / self.path.strip("/")
        if self.server.failures > 0 and not head:
            self.server.failures -= 1
            self.reply(503, b"")
        elif path.is_dir():
            links = "".join(f'<a href="{p.name}">{p.name}</a>' for p in sorted(path.iterdir()))
            self.reply(200, links.encode(), head)
        elif not path.is_file() or (path.suffix != ".tar" and not self.server.indexed):
            self.reply(404, b"", head)
        else:
            self.file(path, head)

    def file(self, path: Path, head: bool) -> None:
        data, headers = path.read_bytes(), {"ETag": f'"{path.stat().st_mtime_ns}"', "Accept-Ranges": "bytes"}
        if (asked := self.headers.get("Range")) and self.server.ranges and not head:
            first, last = asked.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.reply(206, part, head, headers)
        else:
            self.reply(200, data, head, headers)

    def reply(self, code: int, data: bytes, head: bool = False, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            if headers and self.server.cuts > 0:
                self.server.cuts -= 1
                data, self.close_connection = data[: len(data) // 2], True
            self.server.sent += len(data) if headers else 0
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.folder, running.url = folder, f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()
