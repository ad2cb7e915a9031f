"""Parity with open_clip's losses on the same tensors, on one rank; on two it is tests/laws/test_ranks.py."""

import pytest
import torch
from torch.nn import functional as F

from mmtrain.objective.tiles import Names, infonce, sigmoid
from tests.parity.peers import open_clip_losses

losses = open_clip_losses()
pytestmark = pytest.mark.skipif(losses is None, reason="open_clip is not installed: OPEN_CLIP=<folder>")


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_loss_and_gradients_equal_open_clips(name: str):
    draw = torch.Generator().manual_seed(0)
    first, second = (
        F.normalize(x).requires_grad_() for x in torch.randn(2, 33, 16, dtype=torch.float64, generator=draw)
    )
    t, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.3, -10.0))
    who = Names.apart(33, first.device)
    if name == "ClipLoss":
        ins, ours = [first, second, t], infonce(first, second, t, who, 10).loss.mean()
        theirs = losses.ClipLoss()(first, second, t.exp())
    else:
        ins, ours = [first, second, t, b], sigmoid(first, second, t, b, who, 10).loss.mean()
        theirs = losses.SigLipLoss()(first, second, t.exp(), b)
    grads = [torch.autograd.grad(loss, ins) for loss in (ours, theirs)]
    for got, wanted in zip([ours, *grads[0]], [theirs, *grads[1]], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
