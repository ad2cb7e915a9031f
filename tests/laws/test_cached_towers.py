"""Law: a run on frozen towers gives the same losses from their cached features, and then no tower runs.

Of a clip longer than what is taken of it, the cache holds the middle, where a run on pixels takes any part: here four
frames span the whole clip."""

from pathlib import Path

import pytest

from mmtrain import config
from mmtrain.backbone.clip import CLIP
from mmtrain.data.shards import write_world
from mmtrain.errors import UserError
from mmtrain.evaluate import curves, outcome
from mmtrain.evaluate.alignment import evaluate, subject
from mmtrain.evaluate.report import report
from mmtrain.train.fit import fit
from mmtrain.train.resume import Ask

WORDS = ["backbone=clip", "trainer.steps=3", "trainer.batch_size=4", "trainer.log_every=1", "trainer.ema=null"]
WORDS += ["trainer.num_workers=0", "~adapters.full", "logger={}"]
TOPS = ["+adapter@adapters.time=temporal", "adapters.time.width=8", "adapters.time.heads=2"]
TOPS += ["+adapter@adapters.projection=projection", "+adapter@adapters.memory=tip_adapter", "adapters.memory.shots=4"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("pairs") / "world", split="train", count=6, seed=0)


def trained(folder: Path, clip: Path, shards: Path, *words: str) -> Path:
    where = [f"folder={folder}", f"dataset.shards={shards}", f"backbone.path={clip}", "backbone.long_captions=truncate"]
    return fit(config.checked(config.compose("align_world", [*WORDS, *where, *words])), Ask())


def test_losses_from_the_cache_are_the_losses_without_it(
    tmp_path: Path, tiny_clip: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = curves.read(trained(tmp_path / "plain", tiny_clip, shards, *TOPS) / "metrics.csv")["loss"][1]
    trained(tmp_path / "first", tiny_clip, shards, *TOPS, f"cache={tmp_path / 'cache'}")

    def never(*_: object) -> None:
        raise AssertionError("the tower ran")

    monkeypatch.setattr(CLIP, "visual_features", never)
    monkeypatch.setattr(CLIP, "text_features", never)
    again = trained(tmp_path / "again", tiny_clip, shards, *TOPS, f"cache={tmp_path / 'cache'}")
    cached = curves.read(again / "metrics.csv")["loss"][1]
    assert plain[0] != pytest.approx(plain[-1], rel=1e-4), "nothing was learned"
    assert cached == pytest.approx(plain, rel=1e-5)


def test_what_trains_inside_the_visual_tower_refuses_a_cache(tmp_path: Path, tiny_clip: Path, shards: Path):
    words = ["+adapter@adapters.lora=lora_clip", f"cache={tmp_path / 'cache'}"]
    with pytest.raises(UserError, match="inside the visual tower"):
        trained(tmp_path / "runs", tiny_clip, shards, *words)
    assert not (tmp_path / "cache").exists()


def test_scores_are_told_while_a_run_trains_and_agree_with_the_evaluation(
    tmp_path: Path, tiny_clip: Path, shards: Path
):
    words = [*TOPS, f"cache={tmp_path / 'cache'}", "preview=scores", "preview.every_n_steps=2", "preview.count=8"]
    words += ["preview.metrics=[retrieval]", f"preview.prompts_from={shards}"]
    folder = trained(tmp_path / "runs", tiny_clip, shards, *words)
    told = curves.read(folder / "scores.csv")
    assert told["text → visual, R@10"][0].tolist() == [2, 3]
    found = subject(folder)
    assert found is not None
    out = evaluate(*found, prompts_from=str(shards), count=8, metrics=["retrieval"], seed=0, out=tmp_path / "out")
    rows = {(row["group"], row["number"]): row["adapted"]["mean"] for row in outcome.read(out)["table"]}
    for (group, number), value in rows.items():
        if number.startswith("R@"):
            assert told[f"{group}, {number}"][1][-1] == pytest.approx(value)
    page = report(str(folder), evaluation=out, out=tmp_path / "page.html").read_text()
    assert page.count("data:image/png") == 2
    assert "Ranks of the right answer" in page
    assert "Before and after are asked about the same pairs" in page
    assert "clip of each model" not in page
    (out / "evaluation.json").rename(tmp_path / "away.json")
    bare = report(str(folder), evaluation=None, out=tmp_path / "bare.html").read_text()
    assert "<code>mmtrain evaluate RUN</code>" in bare
    assert "mmtrain export" not in bare.split("Training")[0], "an alignment is evaluated without an export"
