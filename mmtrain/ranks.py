"""What the ranks of a run exchange besides gradients, which are Lightning's business: embeddings, and what is summed.

Every rank holds equally many rows (`data/stream.py` deals them out so). Without a process group there is one rank, and
each of these is the identity.
"""

import torch
from torch import Tensor, distributed


def count() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if count() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """The rows ``[n ...]`` of every rank, ``[ranks·n ...]`` in their order. Gradients do not pass."""
    if count() == 1:
        return rows.detach()
    every = rows.new_empty((count() * len(rows), *rows.shape[1:]))
    distributed.all_gather(list(every.chunk(count())), rows.detach().contiguous())
    return every


def sum_own(rows: Tensor) -> Tensor:
    """Of rows ``[ranks·n ...]``, summed over the ranks, those of this rank, ``[n ...]``."""
    if count() == 1:
        return rows
    own = torch.empty_like(rows[: len(rows) // count()])
    distributed.reduce_scatter(own, list(rows.contiguous().chunk(count())))
    return own
