"""Law of clipping: the gradient that a step uses has at most the stated norm, whatever the precision."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from mmtrain.batch import Batch, Loss
from mmtrain.rng import Rng
from mmtrain.train.module import TrainModule
from mmtrain.train.optim import AdamW


class Line(nn.Module):
    """An adapter that is its own network: y = w·x."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False)

    def named_weights(self) -> dict[str, nn.Parameter]:
        return {"weight": self.layer.weight}


def steep(backbone: Any, batch: Batch, rng: Rng) -> Loss:
    assert batch.frames is not None
    return Loss(1000 * backbone.layer(batch.frames.flatten(1)).flatten(), {})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_a_gradient_is_clipped_in_every_precision(precision: Any, clip: float) -> None:
    torch.manual_seed(0)
    line = Line()
    optim = AdamW(lr=1e-3)
    module = TrainModule(
        backbone=line, adapters={"line": line}, objective=steep, optim=optim, seed=0, steps=1, clip=clip
    )
    batch = Batch(keys=["a", "b"], positions=[0, 1], captions=["", ""], frames=torch.ones(2, 1, 1, 2, 2))
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch], batch_size=None))
    assert line.layer.weight.grad is not None
    assert float(line.layer.weight.grad.norm()) == pytest.approx(clip, rel=1e-5)
