"""Pages of docs/: every command that they show is one, and with `RESUME_PROOF=full` a journey's
commands are done one after another in an empty folder, with fewer and smaller steps."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtrain import cli, config

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = (
    *("launch-a-run", "adapt-a-brand", "brand-style", "evaluation", "reproduce-an-experiment", "launching", "families"),
    "sampling",
)
FULL = os.environ.get("RESUME_PROOF") == "full"
SHORT = ["trainer.steps=4", "trainer.batch_size=4", "trainer.threads=1", "trainer.checkpoint_every=2"]
FILES = {"launch-a-run": [], "adapt-a-brand": [], "reproduce-an-experiment": ["launch-a-run"]}
"""Pages that are done, and those whose files they go on with."""


def commands(page: str) -> list[list[str]]:
    """The words of each mmtrain command in a page's blocks for the console, as a shell splits them."""
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [re.search(r"(?:^|\s)mmtrain (.*)", line) for line in lines if not line.startswith("#")]
    return [shlex.split(match[1]) for match in found if match]


EVERY = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{page}: {' '.join(words)}" for page, words in EVERY])
def test_a_command_that_is_shown_is_one(page: str, words: list[str]):
    args = cli._parse(words)
    if words[0] in ("train", "check") and args.recipe is not None:
        overrides = [_first(word) if "-m" in words else word for word in args.overrides if not word.startswith("hydra")]
        asked = [] if "dataset.folder" in " ".join(overrides) or args.recipe != "brand_style" else ["dataset.folder=x"]
        assert [str(fault) for fault in config.check(config.compose(args.recipe, [*overrides, *asked]))] == []


def _first(word: str) -> str:
    """One value of those that a sweep takes, or the lower end of an interval."""
    interval = re.fullmatch(r"(.*=)(?:tag\(log, )?interval\((.*?),.*\)", word)
    return "".join(interval.groups()) if interval else word if "[" in word else word.split(",")[0]


def test_pages_show_commands():
    assert {page for page, _ in EVERY} == set(PAGES)
    assert len(EVERY) > 15


def shortened(words: list[str]) -> list[str]:
    if words[:2] == ["shards", "world"]:
        return [*words[:3], "--count", "8"]
    if words[0] == "train" and "--cfg" not in words:
        steps = [word for word in words if word.startswith("trainer.steps=")]
        return words if words[1] == "--resume" else [*words, *SHORT[bool(steps) :], *(["trainer.steps=6"] * len(steps))]
    return [*words, "--steps", "2"] if words[0] == "sample" else words


@pytest.mark.skipif(not FULL, reason="in make resume-proof")
@pytest.mark.parametrize("page", FILES)
def test_a_page_works_from_an_empty_folder(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"mug-{i}.png")
    for earlier in [*FILES[page], page]:
        for words in commands(earlier):
            status = cli.main(shortened(words))
            assert status == 0, f"mmtrain {shlex.join(shortened(words))}: status {status}"
