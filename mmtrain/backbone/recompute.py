"""Blocks of a network that keep only their input, and are computed again when their gradient is due (Chen et al. 2016).

A block is an element of a network's outermost lists: a residual block, or a whole attention stack, norms and
projections included. diffusers' own checkpointing recomputes parts of these, and keeps what lies between. Gradients are
those without, bit for bit on a CPU.
"""

from collections.abc import Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from torch import nn

from mmtrain.rng import computed_again

STAGES = ("down_blocks", "up_blocks")
"""Lists whose elements hold the lists that are meant."""

IN_ORDER = ("motion_modules", "attentions", "resnets")
"""Lists of a U-Net's stage, from what runs last."""


def recompute(network: nn.Module) -> int:
    """Have a network's blocks computed again in its backward pass; how many there are."""
    found = list(blocks(network))
    for block in found:
        block.forward = partial(_forward, block.forward)
    return len(found)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The elements of a network's outermost lists that are worth it.

    Left out are the last one, which is due again as soon as it is done, and those of a U-Net's lowest resolution that
    hold no attention: they keep next to nothing, and cost as much to compute again as others.
    """
    down, up = (getattr(network, name, None) for name in STAGES)
    if down is None or up is None:
        yield from list(_inside(network, set()))[:-1]
        return
    last = next(getattr(up[-1], name)[-1] for name in IN_ORDER if hasattr(up[-1], name))
    small: set[int] = set()
    if not any(hasattr(stage, "attentions") for stage in (down[-1], up[0])):
        small = {id(network.mid_block), id(down[-1]), id(up[0])}
    yield from (block for block in _inside(network, small) if block is not last)


def _inside(module: nn.Module, left_out: set[int]) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        if id(child) in left_out:
            continue
        if isinstance(child, nn.ModuleList) and name not in STAGES:
            yield from child
        else:
            yield from _inside(child, left_out)


def _forward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    here = copy_context()  # what steers the network is in it, and is over when the block is computed again
    return computed_again(partial(here.run, forward, **kwargs), *args)
