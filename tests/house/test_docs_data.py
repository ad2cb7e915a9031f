"""The commands that docs/data.md quotes, run as they stand there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtrain import cli, config
from mmtrain.data.shards import write_world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_every_command_of_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    Path("photographs").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(f"photographs/{i}.png")
        Path(f"photographs/{i}.txt").write_text(f"picture {i}")
    rows = {"image": ["photographs/0.png"], "caption": ["a picture"]}
    parquet.write_table(arrow.table(rows), "table.parquet")
    write_world("data/shards/heldout", split="heldout", count=3, seed=0)
    for program, *words in commands():
        assert program == "mmtrain"
        few = [word.replace("2000", "6") for word in words]
        if words[1] == "encode":  # its work is tested in tests/laws/test_cache.py
            assert config.check(config.compose(words[2])) == []
        else:
            assert cli.main(few) == 0, words
