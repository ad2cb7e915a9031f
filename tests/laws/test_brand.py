"""Laws of the brand kit: its style is read from what it draws and nothing else, and the scene below stays readable."""

from pathlib import Path

import numpy as np
import pytest

from mmtrain import cli
from mmtrain.data import world
from mmtrain.data.brand import TOKEN, Brand, render
from mmtrain.data.decode import encode_mp4
from mmtrain.data.source import Source
from mmtrain.evaluate.brand import BrandStyle
from mmtrain.evaluate.cases import OWN, Case
from mmtrain.evaluate.judge import fulfilment, read

CASE = Case(name="c", group=OWN, prompt="p", seed=0)
SCENES = [world.scene(1, "heldout", i, two_objects=0.0) for i in range(24)]
PARTS = ("palette", "outline", "pattern", "logo")


def test_every_part_is_read_from_branded_clips_and_none_from_plain_ones():
    branded = [BrandStyle()(render(scene, Brand(), 4), CASE) for scene in SCENES]
    plain = [BrandStyle()(world.render(scene, 4), CASE) for scene in SCENES]
    for part in (*PARTS, "style adherence"):
        assert np.mean([found[part] for found in branded]) >= 0.95, part
        assert np.mean([found[part] for found in plain]) <= 0.1, part


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_read_by_itself(part: str):
    """A clip that lacks one part is told to lack that one."""
    scene = next(s for s in SCENES if s.background == "grey")
    whole, bare = render(scene, Brand(), 2), world.render(scene, 2)
    untinted = render(scene, Brand(shades=world.COLOURS), 2)
    unlined = render(scene, Brand(outline=(128, 128, 128)), 2)
    lacking = {"palette": untinted, "outline": unlined, "pattern": whole.copy(), "logo": whole.copy()}
    lacking["logo"][:, 51:, 51:] = bare[:, 51:, 51:]
    same = np.abs(whole.astype(int) - bare).max(-1) < 20
    lacking["pattern"][same] = bare[same]
    found = BrandStyle()(lacking[part], CASE)
    assert not found[part]
    assert BrandStyle()(whole, CASE)[part]


def test_the_judge_reads_the_scene_below():
    right = [fulfilment(read(render(scene, Brand())), scene.truth()) for scene in SCENES]
    for fact in ("colour", "shape", "motion", "background"):
        assert np.mean([one[fact] for one in right]) >= 0.95, fact


def test_shards_of_the_brand_say_so(tmp_path: Path):
    folder = tmp_path / "brand"
    assert cli.main(["shards", "world", str(folder), "--count", "3", "--brand"]) == 0
    source = Source(shards=str(folder), num_frames=None, stride=1, fps=None, size=None, window=8)
    assert all(caption.endswith(TOKEN) for caption in source.sample(0).captions)
    assert BrandStyle()(source.sample(0).frames, CASE)["style adherence"]
    assert len(encode_mp4(source.sample(0).frames, 25)) > 0
