"""The order of a run: which sample stands at which place, a pure function of (seed, epoch, lengths of the shards).

Arithmetic only, no files. The permutation is our own, because a library's may change with its version; its digests are
pinned by tests, and a change here must raise `VERSION`, since it makes old checkpoints unresumable.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmtrain.rng import key

VERSION = 1
BLOCK = 10_000  # positions over which the weights of a mixture hold exactly
_GOLDEN, _MIX1, _MIX2 = (np.uint64(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def permutation(n: int, *parts: int | str) -> np.ndarray:
    """int64 ``[n]``: the numbers below n, sorted by a 64-bit mix (the finaliser of SplitMix64) keyed by the parts."""
    with np.errstate(over="ignore"):
        z = np.uint64(key("permutation", *parts)) + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        z = z ^ (z >> np.uint64(31))
    return np.argsort(z, kind="stable")


class Order:
    """Sample numbers by global position.

    Each epoch permutes the shards, then permutes the samples inside windows of that many neighbouring shards, so that
    reading stays local and every sample comes exactly once an epoch.

    Args:
        lengths: samples of each shard.
        window: shards whose samples are mixed.
    """

    def __init__(self, *, lengths: Sequence[int], window: int, seed: int) -> None:
        self.lengths, self.window, self.seed = np.array(lengths, np.int64), window, seed
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.total = int(self.starts[-1])
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._window = lru_cache(maxsize=2)(self._draw_window)

    def __getitem__(self, position: int) -> int:
        """The sample at a global position (which counts on over epochs)."""
        epoch, place = divmod(position, self.total)
        _, edges = self._epoch(epoch)
        window = int(np.searchsorted(edges, place, side="right")) - 1
        return int(self._window(epoch, window)[place - int(edges[window])])

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order, and the position at which each window begins."""
        shards = permutation(len(self.lengths), self.seed, epoch)
        heads = np.arange(0, len(shards), self.window)
        sizes = np.add.reduceat(self.lengths[shards], heads)
        return shards, np.concatenate([[0], np.cumsum(sizes)])

    def _draw_window(self, epoch: int, window: int) -> np.ndarray:
        """The samples of one window in order."""
        shards, _ = self._epoch(epoch)
        inside = shards[window * self.window : (window + 1) * self.window]
        samples = np.concatenate([np.arange(self.starts[s], self.starts[s + 1]) for s in inside])
        return samples[permutation(len(samples), self.seed, epoch, window)]


class MixedOrder:
    """Sample numbers by global position over several orders, each of which keeps its own.

    Each `BLOCK` of positions holds a fixed number of places for each order, shuffled by (seed, block). So which order a
    position belongs to, and which place in it, follow from the position alone.

    Args:
        orders: what is mixed.
        bases: what is added to the sample numbers of each.
        shares: places in a block of each; their sum is `BLOCK`.
    """

    def __init__(self, *, orders: Sequence[Order], bases: Sequence[int], shares: Sequence[int], seed: int) -> None:
        assert sum(shares) == BLOCK
        self.orders, self.bases, self.shares, self.seed = list(orders), list(bases), list(shares), seed
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def __getitem__(self, position: int) -> int:
        """The sample at a global position."""
        block, place = divmod(position, BLOCK)
        owners, turns = self._block(block)
        k = int(owners[place])
        return self.bases[k] + self.orders[k][block * self.shares[k] + int(turns[place])]

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block: whose it is, and how many before it are the same's."""
        owners = np.repeat(np.arange(len(self.shares)), self.shares)[permutation(BLOCK, self.seed, "mixture", block)]
        turns = np.empty(BLOCK, np.int64)
        for k, share in enumerate(self.shares):
            turns[owners == k] = np.arange(share)
        return owners, turns


def shares(weights: Sequence[float]) -> list[int]:
    """Weights as places in a `BLOCK`, by largest remainder, the first of equal ones first."""
    exact = np.array(weights, np.float64) / sum(weights) * BLOCK
    found = np.floor(exact).astype(np.int64)
    found[np.argsort(-(exact - found), kind="stable")[: BLOCK - int(found.sum())]] += 1
    return found.tolist()
