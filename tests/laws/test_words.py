"""Learned words: they start as known ones, they alone train, and they go out to vanilla diffusers with the model."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mmtrain.adapter.words import Words
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.batch import Batch
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng
from mmtrain.sample.generate import images

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 16, "width": 16}


def learning(folder: Path) -> tuple[StableDiffusion, Words]:
    model, adapter = StableDiffusion(path=str(folder)), Words(words=["<zwx>"], like=["red"])
    adapter.attach(model)
    return model, adapter


def loss(model: StableDiffusion, *captions: str, drop: float = 0.0) -> torch.Tensor:
    pixels = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(["x", "y"], [0, 1], list(captions), pixels)
    return Denoise(drop_text=drop)(model, batch, Rng(0, 0, [0, 1])).per_sample


def test_a_word_starts_as_a_known_one_and_alone_trains(tiny_sd: Path):
    bare = StableDiffusion(path=str(tiny_sd))
    model, adapter = learning(tiny_sd)
    assert model.base == bare.base, "an adapter is no part of the base"
    with torch.no_grad():
        assert torch.equal(loss(model, "a <zwx> circle", "a square"), loss(bare, "a red circle", "a square"))
    loss(model, "a <zwx> circle", "a square").sum().backward()
    [row] = adapter.named_weights().values()
    assert row.grad is not None
    assert float(row.grad.abs().max()) > 0
    assert [n for n, w in model.named_parameters() if w.requires_grad and w is not row] == []
    before = loss(model, "a <zwx> circle", "a square").detach()
    row.data += torch.randn(row.shape, generator=torch.Generator().manual_seed(0))
    after = loss(model, "a <zwx> circle", "a square").detach()
    assert before[0] != after[0], "what the word says is not remembered"
    assert before[1] == after[1]


def test_a_batch_of_dropped_captions_has_a_gradient_of_zero(tiny_sd: Path):
    model, adapter = learning(tiny_sd)
    loss(model, "a <zwx> circle", "a <zwx> square", drop=1.0).sum().backward()
    [row] = adapter.named_weights().values()
    assert row.grad is not None
    assert not row.grad.any()


def test_vanilla_diffusers_knows_the_word(tiny_sd: Path, tmp_path: Path):
    model, adapter = learning(tiny_sd)
    [row] = adapter.named_weights().values()
    row.data += torch.randn(row.shape, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a <zwx> circle", **CALL, generator=torch.Generator().manual_seed(0), output_type="np").images
    ours = images(backbone=model, prompts=["a <zwx> circle"], seeds=[0], **CALL)  # type: ignore[arg-type]
    assert abs((made * 255).round() - ours).max() <= 1
    known = images(backbone=model, prompts=["a red circle"], seeds=[0], **CALL)  # type: ignore[arg-type]
    assert abs(known.astype(int) - ours).max() > 1


@pytest.mark.parametrize(
    ("words", "like", "said"),
    [(["red"], ["blue"], "a word already"), (["<a>"], ["qwxz"], "one token"), (["<a>"], [], "one known word for each")],
)
def test_words_that_cannot_be_are_refused(tiny_sd: Path, words: list[str], like: list[str], said: str):
    with pytest.raises(UserError, match=said):
        Words(words=words, like=like).attach(StableDiffusion(path=str(tiny_sd)))


def test_captions_without_the_word_are_refused(tiny_sd: Path):
    model, _ = learning(tiny_sd)
    with pytest.raises(UserError, match="none of a batch"):
        loss(model, "a red circle", "a square")
