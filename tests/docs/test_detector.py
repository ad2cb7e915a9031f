"""docs/evaluation.md: the commands that make a detector of broken clips, one after another, smaller."""

from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain import cli
from mmtrain.batch import to_unit
from mmtrain.data import broken, world
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import OWN, Case
from mmtrain.evaluate.pairs import spread
from mmtrain.evaluate.run import metric
from tests.docs.test_journeys import commands

FEWER = {"3000": "12", "400": "10"}
SMALL = [
    *("trainer.steps=2", "trainer.batch_size=4", "trainer.ema=null", "optim.warmup=0"),
    *("backbone.visual.channels=[8,8]", "backbone.visual.side=16"),
]


def test_a_detector_is_trained_judged_exported_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    asked = commands("evaluation")
    [first] = [i for i, words in enumerate(asked) if "--broken" in words and "heldout" not in words]
    *making, last = asked[first : first + 6]
    for words in making:
        found = [FEWER.get(word, word) for word in words] + (SMALL if words[0] == "train" else [])
        assert cli.main([each for word in found for each in (sorted(glob(word)) if "*" in word else [word])]) == 0
    told = capsys.readouterr().out
    assert "whole or broken · 10 pairs" in told
    assert "AUC" in told
    assert last[-1].split(",") == ["motion", "unbroken"]
    unbroken, case = metric("unbroken"), Case(name="x", group=OWN, prompt="a red circle", seed=0)
    scene = world.scene(0, "heldout", 0)
    answers = [unbroken(clip, case)["judged whole"] for clip in (world.render(scene), world.render(scene)[::2])]
    assert {type(answer) for answer in answers} == {bool}
    visual = unbroken.detector
    monkeypatch.setattr(visual, "embed_text", lambda captions: visual.embed_videos(_spoilt(scene, captions)))
    assert unbroken(world.render(scene), case)["judged whole"], "what is nearest decides"
    assert not unbroken(broken.foreign(scene, np.random.default_rng(0)), case)["judged whole"]
    with pytest.raises(UserError, match="a clip of 7 frames.*at least 8"):
        unbroken(world.render(scene)[:7], case)


def _spoilt(scene: world.Scene, captions: list[str]) -> torch.Tensor:
    """Frames ``[b t c h w]`` that stand for the two sentences: the clip itself, and the one that is broken."""
    clips = {broken.WHOLE: world.render(scene), broken.BROKEN: broken.foreign(scene, np.random.default_rng(0))}
    return torch.stack([to_unit(spread(clips[caption], 8)) for caption in captions])
