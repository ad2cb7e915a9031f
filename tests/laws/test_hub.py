"""Laws of `export --push-to-hub`: what was proved arrives whole in a private repository; where it cannot, one line says
so and the export stays."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from mmtrain import cli
from mmtrain.errors import UserError
from mmtrain.export import prove, prove_lora, vanilla
from mmtrain.export.hub import push
from mmtrain.run import Run
from tests.laws.test_export import run_of

NAME = "brand/style"


class Hub(http.server.ThreadingHTTPServer):
    """The few calls that an upload makes, as the hub's own client makes them."""

    url = ""
    refuses = 0  # a status for all calls

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()


class Call(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.tokens.add(self.headers["Authorization"])
        call = self.path.removeprefix("/api/")
        if self.server.refuses:
            self.reply({"error": "this token may only read"}, self.server.refuses)
        elif call == "repos/create":
            self.server.created.append(json.loads(body))
            self.reply({"url": f"{self.server.url}/{NAME}"})
        elif call == "validate-yaml":
            self.reply({"warnings": [], "errors": []})
        elif call == f"models/{NAME}/preupload/main":
            asked = json.loads(body)["files"]
            self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif call == f"models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply({"commitUrl": f"{self.server.url}/{NAME}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.reply({"error": f"no such call: {call}"}, 404)

    def reply(self, answer: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)  # HF_ENDPOINT, read at import
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def words(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of an export whose proof runs in this process, which is quicker."""

    def run(place: Path) -> Any:
        vanilla.main(place)
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(prove, "_run", run)
    paths = ["dataset.folder=unread", f"backbone.path={tiny_sd}", "adapters.style.rank=2"]
    run: Run = run_of(tmp_path / "runs", "brand_style", *paths)
    out = ["--to", str(tmp_path / "out"), "--format", "peft"]
    return ["export", str(run.path), *out, "--push-to-hub", NAME]


def test_an_export_arrives_whole(hub: Hub, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(words) == 0
    [made] = hub.created
    assert (made["organization"], made["name"], made["visibility"]) == ("brand", "style", "private")
    folder = tmp_path / "out"
    assert hub.files == {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.tokens == {"Bearer hf_secret"}
    assert capsys.readouterr().out.splitlines() == [str(folder), f"{hub.url}/{NAME}"]


def test_what_is_not_proved_is_not_sent(hub: Hub, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prove_lora, "LIMITS", dict.fromkeys(prove_lora.LIMITS, -1.0))
    assert cli.main(words) == 2
    assert not hub.created
    assert not (tmp_path / "out").exists()


def test_without_a_token_the_export_is_kept(
    hub: Hub, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "out")]
    [line] = said.err.strip().splitlines()
    assert f"--push-to-hub {NAME}: no token" in line
    assert f"`hf upload {NAME} {tmp_path / 'out'} .`" in line
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not hub.created


@pytest.mark.parametrize("why", ["403", "refused"])
def test_a_hub_that_does_not_take_it(hub: Hub, tmp_path: Path, why: str):
    (tmp_path / "README.md").write_text("# An export\n")
    if why == "refused":
        hub.shutdown()
        hub.server_close()
    hub.refuses = 403
    with pytest.raises(UserError, match=f"(?s){why}.*the export is kept: `hf upload {NAME} ") as caught:
        push(tmp_path, NAME)
    assert caught.value.status == 2
    assert len(str(caught.value).splitlines()) == 1
    assert not hub.files


def test_a_name_that_can_be_none(hub: Hub, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main([*words[:-1], "a/b/c"]) == 2
    assert "a repository's name, as in org/name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
