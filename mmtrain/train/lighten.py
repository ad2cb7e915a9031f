"""What makes a step of a frozen network cheaper without changing its numbers, before a run and in its plan."""

from typing import Any

from torch import nn

from mmtrain.backbone.flat_convolution import flatten
from mmtrain.backbone.frozen import spare
from mmtrain.backbone.one_token import shorten
from mmtrain.backbone.plain_attention import write_out
from mmtrain.backbone.recompute import recompute
from mmtrain.errors import UserError
from mmtrain.rng import drops_out
from mmtrain.train.module import train_what_trains
from mmtrain.train.schedule import Fit


def lighten(backbone: Any, schedule: Fit) -> None:
    """Attention to one token is its value; on a CPU, short attention in 16 bits is written out and convolutions over
    frames are flat in 32, where the last bits differ. Where ``schedule.checkpointing`` asks for less memory, blocks are
    computed again and frozen convolutions keep no input; alone these save little (benchmarks/RESULTS.md). Adapters are
    attached already.

    Raises:
        UserError: a network that has no blocks to compute again.
    """
    network: nn.Module = backbone.network
    write_out(network)
    shorten(network)
    if not schedule.checkpointing:
        flatten(network)
        return
    spare(network)
    if not recompute(network):
        came = f"a {type(network).__name__}, which has no blocks"
        raise UserError("trainer.checkpointing", came, "false", "set it so")


def compile_network(backbone: Any, adapters: dict[str, Any]) -> None:
    """Have torch compile the network as it will train.

    Raises:
        UserError: one with dropout: torch runs what is compiled as it was written while our draws are in force.
    """
    train_what_trains(backbone, adapters)
    if drops_out(backbone.network):
        fix = "set the adapters' dropout to 0, or trainer.compile=false"
        raise UserError("trainer.compile", "a network with dropout", "one without", fix)
    backbone.network.eval()
    backbone.network.compile()
