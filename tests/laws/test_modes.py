"""Frozen encoders beside a network that trains stay in eval mode: what they say is remembered, so never chance."""

from torch import nn

from mmtrain.adapter.full import Full
from mmtrain.sample.generate import evaluating
from mmtrain.train.module import train_what_trains


class Two(nn.Module):
    """A network, and a text encoder with dropout beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.encoder = nn.Dropout(0.1), nn.Dropout(0.1)


def modes(model: Two) -> tuple[bool, bool, bool]:
    return model.training, model.network.training, model.encoder.training


def test_only_the_network_that_trains_leaves_eval_mode():
    model = Two()
    train_what_trains(model, {"full": Full(train=["*"], freeze=[])})
    assert modes(model) == (True, True, False)
    with evaluating(model):
        assert modes(model) == (False, False, False)
    assert modes(model) == (True, True, False)
    train_what_trains(model, {"other": nn.Identity()})
    assert modes(model) == (False, False, False)
