"""Laws of the CLIP score: it is the towers' own cosine, its lift tells a prompt from others, and its model is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from mmtrain.backbone.clip import prepare
from mmtrain.batch import to_unit
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import OWN, Case, Prepared
from mmtrain.evaluate.clip_score import ClipScore

PROMPTS = ("a red circle", "a blue square", "a circle moving left")


def case(prompt: str) -> Case:
    return Case(name="c", group=OWN, prompt=prompt, seed=0)


@pytest.fixture(scope="module")
def metric(tiny_clip: Path) -> ClipScore:
    made = ClipScore(path=str(tiny_clip))
    made.prepare([case(prompt) for prompt in PROMPTS])
    return made


def test_it_is_the_mean_cosine_that_transformers_gives(metric: ClipScore, tiny_clip: Path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip), CLIPTokenizer.from_pretrained(tiny_clip)
    ids = tokenizer(list(PROMPTS), padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        pixels = prepare(to_unit(frames.copy()), 224, metric.clip.processor)
        out = model.eval()(input_ids=ids, pixel_values=pixels)
    cosine = (out.image_embeds @ out.text_embeds.T).mean(0)
    found = metric(frames, case(PROMPTS[0]))
    assert isinstance(metric, Prepared)
    assert set(found) == {f"CLIP {what} (clip)" for what in ("score", "lift", "consistency")}
    assert found["CLIP score (clip)"] == pytest.approx(float(cosine[0]), abs=1e-5)
    assert found["CLIP lift (clip)"] == pytest.approx(float(cosine[0] - cosine[1:].mean()), abs=1e-5)


def test_a_still_clip_is_consistent_and_another_is_less(metric: ClipScore):
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    frames[2:] //= 8
    still = metric(frames[:1].repeat(4, 0), case(PROMPTS[0]))["CLIP consistency (clip)"]
    assert still == pytest.approx(1, abs=1e-5)
    assert metric(frames, case(PROMPTS[0]))["CLIP consistency (clip)"] < still  # type: ignore[operator]
    assert metric(frames[:1], case(PROMPTS[0]))["CLIP consistency (clip)"] is None


def test_alone_there_is_no_lift_and_a_long_prompt_is_told_before_a_clip(tiny_clip: Path):
    alone = ClipScore(path=str(tiny_clip))
    alone.prepare([case(PROMPTS[0])])
    assert alone(np.zeros((2, 64, 64, 3), np.uint8), case(PROMPTS[0]))["CLIP lift (clip)"] is None
    with pytest.raises(UserError, match="at most 16 fit"):
        alone.prepare([case("a red circle " * 9)])
    with pytest.raises(UserError, match="call prepare"):
        alone(np.zeros((2, 64, 64, 3), np.uint8), case("unseen"))
