"""The report: one page that holds everything, fetches nothing, and says in words what its numbers say."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain import cli
from mmtrain.data import world
from mmtrain.errors import UserError
from mmtrain.evaluate import curves, page, table
from mmtrain.evaluate.cases import ONE, heldout
from mmtrain.evaluate.fulfilment import Fulfilment
from mmtrain.evaluate.report import _replaced, report
from mmtrain.run import write_json
from mmtrain.sample.mp4 import write_mp4

RUN_ID = "0123456789abcdef0123456789abcdef"
PLAIN = '<script>alert("x")</script> & a cat'


def make_run(folder: Path, run_id: str = RUN_ID) -> Path:
    """A run's folder as training leaves it, of 120 steps of which 20 were done twice."""
    path = folder / f"20250101-000000-toy-{run_id[:8]}"
    path.mkdir(parents=True)
    config = {"name": "toy", "seed": 0, "backbone": {"path": str(Path.cwd() / "data" / "svd")}, "optim": {"lr": 0.5}}
    nodes = {key: {"_target_": "x"} for key in ("dataset", "objective", "trainer")}
    manifest = {
        "run_id": run_id,
        "name": "toy",
        "started": "2025-01-01T00:00:00+00:00",
        "command": [str(Path.home() / "bin" / "mmtrain"), "train", "toy", "name=a b"],
        "seed": 0,
        "config": {**config, **nodes, "adapters": {}, "logger": {}},
        "data": "d" * 32,
        "bases": {"backbone": {"path": str(Path.cwd() / "data" / "svd"), "digest": "b" * 64}},
        "code": "c0de",
        "git": {"commit": "9" * 40, "dirty": True},
        "python": "3.11.7",
        "packages": {"torch": "2.13.0"},
        "hardware": {"cpu": "A Processor", "cores": 2, "threads": 1, "gpus": []},
        "trainable": 1234,
        "frozen": 5678,
    }
    write_json(path / "manifest.json", manifest)
    steps = [*range(1, 101), *range(81, 121)]
    rows = "".join(f"{s},{1.0 / s + (9 if i < 100 and s > 80 else 0)!r},0.5\n" for i, s in enumerate(steps))
    (path / "metrics.csv").write_text(f"step,loss,accuracy\n{rows}")
    return path


def make_evaluation(folder: Path, run_id: str = RUN_ID, made: str = "2025-01-02", prompt: str = PLAIN) -> Path:
    """An evaluation of true clips against frozen ones."""
    (folder / "clips").mkdir(parents=True)
    judge, entries = Fulfilment(), []
    for case in heldout(count=7, two_objects=2, seed=0):
        true = world.render(case.scene)
        entry: dict[str, Any] = {"way": "sd", "group": case.group, "name": case.name, "prompt": case.prompt}
        for arm, clip in (("base", np.repeat(true[:1], 16, 0)), ("adapted", true)):
            name = f"clips/{case.name}-{arm}.mp4"
            write_mp4(clip, folder / name)
            entry[arm] = {"clip": name, "shape": list(clip.shape), "numbers": judge(clip, case)}
        entries.append(entry)
    entries[0]["prompt"] = prompt
    found = {
        "version": 1,
        "artifact": {"name": "toy", "run_id": run_id, "step": 120, "base": {}, "data": "d"},
        "seconds": 12.3,
        "seed": 0,
        "prompts_from": "heldout",
        "ways": ["sd"],
        "metrics": ["fulfilment"],
        "settings": {"guidance_scale": None, "num_inference_steps": 9},
        "command": ["/x/mmtrain", "evaluate", "exports/toy", "--count", "7"],
        "made": made,
        "table": table.aggregate(entries, seed=0, lower_is_better=Fulfilment.lower_is_better),
        "clips": entries,
    }
    write_json(folder / "evaluation.json", found)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "line", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Page]:
    folder = tmp_path_factory.mktemp("report")
    run, evaluation = make_run(folder / "runs"), make_evaluation(folder / "evaluation")
    file = report(str(run), evaluation=evaluation, out=folder / "new" / "page.html")
    assert [p.name for p in file.parent.iterdir()] == ["page.html"], "nothing is left beside"
    return evaluation, file, Page(file.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_fetches_nothing(made: tuple[Path, Path, Page]):
    _, file, seen = made
    assert seen.open == [], "every tag is closed"
    links = [value for _, given in seen.tags for name, value in given.items() if name in ("src", "href", "action")]
    assert links
    assert all(link.startswith("data:video/mp4;base64,") for link in links)
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import", re.sub(r"base64,[^\"]*", "", html))
    policy = next(given["content"] for tag, given in seen.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert {"viewport", "color-scheme"} <= {given.get("name") for tag, given in seen.tags if tag == "meta"}


def test_every_clip_is_there_beside_its_pair(made: tuple[Path, Path, Page]):
    evaluation, _, seen = made
    videos = [given for tag, given in seen.tags if tag == "video"]
    entries = json.loads((evaluation / "evaluation.json").read_text())["clips"]
    files = [evaluation / entry[arm]["clip"] for entry in entries for arm in ("base", "adapted")]
    assert [base64.b64decode(v["src"].partition(",")[2]) for v in videos] == [file.read_bytes() for file in files]
    assert all({"autoplay", "loop", "muted", "playsinline"} <= video.keys() for video in videos)


def test_the_page_says_what_the_evaluation_found(made: tuple[Path, Path, Page]):
    evaluation, _, seen = made
    found = json.loads((evaluation / "evaluation.json").read_text())
    row = found["table"][0]
    assert (row["group"], row["number"]) == (ONE, "motion")
    assert f"{100 * row['base']['mean']:.0f} %" in seen.text
    assert f"p = {row['p_value']:.2g}" in seen.text
    ticks = sum(
        value is True and name not in Fulfilment.lower_is_better
        for entry in found["clips"]
        for arm in table.ARMS
        for name, value in entry[arm]["numbers"].items()
    )
    assert seen.text.count("✓") == ticks
    assert seen.text.count("✗") > 0
    for fact in (RUN_ID, "2025-01-01", "1,234 trained", "A Processor", "torch 2.13.0", "d" * 32, "lr: 0.5", "9" * 40):
        assert fact in seen.text
    assert "mmtrain train toy 'name=a b'" in seen.text
    assert "mmtrain evaluate exports/toy --count 7" in seen.text
    assert "num_inference_steps 9" in seen.text


def test_words_are_shown_and_not_run_and_folders_of_this_machine_are_not_told(made: tuple[Path, Path, Page]):
    _, file, seen = made
    assert PLAIN in seen.text
    assert sum(tag == "script" for tag, _ in seen.tags) == 1
    html = file.read_text(encoding="utf-8")
    assert str(Path.cwd()) not in html
    assert str(Path.home()) not in html


# the verdict ----------------------------------------------------------------------------------------------------------


def verdict_of(base: list[Any], adapted: list[Any], lower: tuple[str, ...] = ()) -> str:
    clips = [
        {"way": "sd", "group": ONE, "base": {"numbers": {"motion": b}}, "adapted": {"numbers": {"motion": a}}}
        for b, a in zip(base, adapted, strict=True)
    ]
    rows = table.aggregate(clips, seed=0, lower_is_better=lower)
    return Page(page.verdict({"table": rows, "ways": ["sd"]})).text


def test_the_verdict_follows_the_numbers():
    never, always = [False] * 20, [True] * 20
    assert "The adapter improves “motion”: it holds in 100 % of cases, against 0 %" in verdict_of(never, always)
    assert "better in motion (+100 points); worse in nothing" in verdict_of(never, always)
    assert "makes “motion” worse" in verdict_of(always, never)
    assert "worse in motion (−100 points)" in verdict_of(always, never)
    assert "makes “motion” worse" in verdict_of(never, always, lower=("motion",))
    assert "no clear difference to “motion”" in verdict_of(always, always)
    assert "no clear difference in anything measured" in verdict_of(always, always)
    assert "no clear difference to “motion”" in verdict_of([*never[2:], True, False], [*never[2:], True, True])
    assert "improves “motion”: 0.5, against 0.25" in verdict_of([0.25] * 9, [0.5] * 9)
    assert "No number applies" in verdict_of([None], [None])


def test_the_page_shows_which_gates_failed_and_by_how_much():
    each = {"gate": "motion >= 0.5", "way": "sd", "group": "one object", "value": 0.2, "margin": -0.3, "sure": True}
    shown = page.gates({"gates": [{**each, "passed": False}, {**each, "margin": 0.1, "passed": True, "sure": False}]})
    assert "1 of 2 failed" in shown
    assert "motion &gt;= 0.5" in shown
    assert "failed <small>0.3 short" in shown
    assert "passed <small>0.1 to spare, not for sure" in shown
    assert page.gates({"gates": []}) == page.gates({}) == ""
    assert "<p>Passed.</p>" in page.gates({"gates": [{**each, "passed": True}]})
    assert "<p>All 2 passed.</p>" in page.gates({"gates": [{**each, "passed": True}] * 2})


# curves ---------------------------------------------------------------------------------------------------------------


def test_a_step_that_was_done_twice_counts_once(tmp_path: Path):
    found = curves.read(make_run(tmp_path) / "metrics.csv")
    steps, loss = found["loss"]
    assert steps.tolist() == list(range(1, 121))
    assert np.allclose(loss, 1 / steps), "the later of two"
    assert list(found) == ["loss", "accuracy"]


def test_a_curve_keeps_its_extremes_and_its_scale():
    steps = np.arange(1.0, 20_001)
    values = np.full(20_000, 1.0)
    values[13_337], values[4] = 9.0, -7.0
    thin, kept = curves._thinned(steps, values)
    assert len(thin) < 1000
    assert (kept.max(), kept.min(), thin[kept.argmax()]) == (9.0, -7.0, 13_338)
    drawn = curves.figure("loss <b>", (steps, np.exp(-steps / 2000)), first=True)
    seen = Page(drawn)
    assert "logarithmic" in seen.text
    assert "loss <b>" in seen.text
    assert {"0.1", "1"} & set(re.findall(r'class="y"[^>]*>([^<]+)<', drawn))
    assert "optimizer step" in seen.text
    places = [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", drawn)]
    assert min(places) >= 0
    assert max(places) <= 100


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0, 0.0], [1.0, float("nan"), 2.0], [-1.0, 5.0]])
def test_any_curve_can_be_drawn(values: list[float]):
    assert "<svg" in curves.figure("x", (np.arange(len(values)) + 1.0, np.array(values)), first=False)


@pytest.mark.parametrize("count", [1, 2, 4, 12, 13, 600])
def test_steps_are_counted_in_whole_numbers(count: int):
    steps = np.arange(count) + 1.0
    drawn = curves.figure("loss", (steps, 1 / steps), first=True)
    labels = re.findall(r'<span class="x" style="left:[\d.]+%">([^<]*)</span>', drawn)
    assert len(labels) >= 2
    assert all(label.isdecimal() for label in labels), labels


def test_a_single_value_is_a_dot_and_more_are_a_line():
    """SVG draws a path that only moves as nothing."""
    one = curves.figure("x", (np.array([3.0]), np.array([0.5])), first=False)
    assert re.search(r'd="M[\d. ]+h0"', one)
    assert "h0" not in curves.figure("x", (np.array([3.0, 4.0]), np.array([0.5, 0.4])), first=False)


def test_the_loss_held_out_stands_behind_the_loss(tmp_path: Path):
    run = make_run(tmp_path / "runs")
    (run / "heldout.csv").write_text("step,loss\n50,0.5\n100,0.25\n")
    text = report(str(run), evaluation=None, out=tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"<figcaption>([^<]+)<", text) == ["loss", "loss held out", "accuracy"]
    assert "loss held out from 0.5 at step 50 to 0.25 at step 100" in text


def test_a_curve_of_nothing_is_none():
    assert curves.figure("x", (np.array([1.0]), np.array([float("nan")])), first=True) == ""


# what is refused, and what is found by itself -------------------------------------------------------------------------


def test_the_newest_evaluation_of_the_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs")
    assert "has not been evaluated" in report("latest", evaluation=None, out=None).read_text()
    make_evaluation(tmp_path / "evaluations" / "old", made="2025-01-01", prompt="the old prompt")
    make_evaluation(tmp_path / "evaluations" / "new", made="2025-01-02", prompt="the new prompt")
    make_evaluation(tmp_path / "evaluations" / "other", run_id="f" * 32, made="2025-01-03", prompt="another run")
    text = report("latest", evaluation=None, out=None).read_text()
    assert "the new prompt" in text
    assert "another run" not in text
    assert [p.name for p in (tmp_path / "reports").iterdir()] == [f"20250101-000000-toy-{RUN_ID[:8]}.html"]


def test_a_run_without_metrics_has_a_page(tmp_path: Path):
    run = make_run(tmp_path / "runs")
    (run / "metrics.csv").unlink()
    assert "Nothing was logged" in report(str(run), evaluation=None, out=tmp_path / "x.html").read_text()


MISTAKES = {
    "report nowhere": "no such run",
    "report {run} --evaluation {empty}": "no evaluation.json",
    "report {run} --evaluation {other}": "of the run ffffffff",
    "report {run} --out {file}": "the output exists",
    "report {run} --out {empty}": "the output exists",
    "report {broken}": "not all numbers",
}


def test_mistakes_are_told_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.html").write_text("my own page")
    broken = make_run(tmp_path / "elsewhere", run_id="e" * 32)
    (broken / "metrics.csv").write_text("step,loss\n1,abc\n")
    places = {"run": make_run(tmp_path / "runs"), "broken": broken, "empty": tmp_path / "empty"}
    places |= {"file": tmp_path / "file.html", "other": make_evaluation(tmp_path / "other", run_id="f" * 32)}
    before = sorted(tmp_path.rglob("*"))
    for line, said in MISTAKES.items():
        assert cli.main(line.format(**places).split()) == 2
        assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file.html").read_text() == "my own page"


def test_an_unreadable_evaluation_is_told(tmp_path: Path):
    from mmtrain.evaluate.outcome import read

    file = tmp_path / "evaluation.json"
    for text, said in (("{", "unreadable"), ('{"version": 9}', "version 9"), ("[]", "unreadable")):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read(tmp_path)


def test_samples_that_were_replaced_are_told_by_shard_and_reason() -> None:
    assert (
        _replaced({"000001.tar": {"does not decode": 2, "too short": 1}})
        == "000001.tar: 2 does not decode, 1 too short"
    )
    assert _replaced({}) == "none"
