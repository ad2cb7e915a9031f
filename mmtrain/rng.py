"""Every random draw of training, keyed instead of stateful, so that no generator state is ever saved.

A draw is named by (seed, stream name, step, sample position). The same name gives the same numbers on any rank, in any
worker, and after any number of restarts.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 11400714819323198485  # 2⁶⁴ / golden ratio, odd


def key(*parts: int | str) -> int:
    """A 63-bit key of the parts: BLAKE2b, so that neighbouring positions share nothing."""
    text = "\x1f".join(str(p) for p in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Rng:
    """The draws of one step, one row per sample of the batch.

    Args:
        seed: the run's seed.
        step: the optimizer step, or any integer that separates repeated visits of a sample.
        positions: global position of each sample, ``[b]``.
    """

    def __init__(self, seed: int, step: int, positions: Sequence[int]) -> None:
        self.seed, self.step, self.positions = seed, step, [int(p) for p in positions]

    def _generators(self, stream: str) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(key(self.seed, stream, self.step, p)) for p in self.positions]

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 ``[b, *shape]``, drawn on the CPU so that devices agree."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators(stream)])

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform float32 in [0, 1), ``[b, *shape]``."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self._generators(stream)])

    def spread(self, stream: str) -> Tensor:
        """Uniform float64 ``[b]`` in (0, 1), evenly spread over samples at neighbouring positions.

        A Weyl sequence of the golden ratio from a start that the step draws. Noise levels drawn so make a small batch's
        loss less of a lottery (Kingma et al. 2021, appendix I.1), and a sample's stays the same on any rank.
        """
        start = key(self.seed, stream, self.step)
        places = [(start + p * _GOLDEN) % 2**64 for p in self.positions]
        return (torch.tensor([place >> 11 for place in places], dtype=torch.float64) + 0.5) / 2**53

    def chance(self, stream: str, probability: float) -> Tensor:
        """Boolean ``[b]``, each true with the given probability."""
        return self.uniform(stream) < probability
