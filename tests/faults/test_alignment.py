"""What cannot be aligned, from the command line: one line that says what to do, exit status 2, and no step."""

from pathlib import Path

import pytest

from mmtrain import cli
from tests import tiny

TEXT = "{hidden_size:16,intermediate_size:32,num_hidden_layers:1,num_attention_heads:2,projection_dim:24}"
CLIP = tiny.WORDS[1:]
VIDEO = ["align_video", f"backbone.text.config={TEXT}", "trainer.threads=1", "trainer.batch_size=2", "trainer.steps=2"]
FAULTS: dict[str, tuple[list[str], str]] = {
    "one pair": ([*CLIP, "trainer.batch_size=1"], "a batch of one pair; pairs to compare with each other"),
    "a long caption": ([*CLIP, "backbone.max_tokens=5"], "at most 5 fit the text tower"),
    "images for a video tower": ([*VIDEO, "dataset.num_frames=1"], "an image; clips of 4 frames"),
    "two widths": (VIDEO, "text embeddings of width 24, visual ones of width 128; one width, or a projection"),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("pairs") / "world")


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_said_in_one_line_before_a_step(
    name: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words, wanted = FAULTS[name]
    where = [f"dataset.shards={shards}", f"folder={tmp_path / 'runs'}", "logger=null"]
    assert cli.main(["train", *words, *where]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert wanted in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/*/checkpoints/step-*"))
