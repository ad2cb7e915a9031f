"""The order of a run: which sample stands at which place, a pure function of (seed, epoch, lengths of the shards).

Arithmetic only, no files. The permutation is our own, because a library's may change with its version; its digests are
pinned by tests, and a change here must raise `VERSION`, since it makes old checkpoints unresumable.
"""

from bisect import bisect_right
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


class BucketedOrder:
    """Sample numbers by global position, where the samples of one batch are all of one bucket.

    Each bucket has its own order, whose positions count on over epochs. Epoch e makes batches of what every bucket has
    then, ⌊(e + 1) n / G⌋ − ⌊e n / G⌋ of a bucket of n samples, and shuffles them; what is left, less than a batch, is
    first in the next epoch. So none is left out or repeated, and no batch is short.

    Args:
        lengths: samples of each shard.
        window: shards whose samples are mixed.
        buckets: of each sample, int64 ``[n]``.
        batch_size: G, samples of a batch.
    """

    def __init__(self, *, lengths: Sequence[int], window: int, seed: int, buckets: np.ndarray, batch_size: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        shards = np.repeat(np.arange(len(lengths)), lengths)
        names = np.unique(buckets).tolist()
        self.members = [np.flatnonzero(buckets == name) for name in names]
        self.orders = []
        for name, members in zip(names, self.members, strict=True):
            held = np.bincount(shards[members], minlength=len(lengths))
            of_its_own = key(seed, "bucket", name)
            self.orders.append(Order(lengths=held[held > 0].tolist(), window=window, seed=of_its_own))
        self.counts = [len(members) for members in self.members]
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __getitem__(self, position: int) -> int:
        """The sample at a global position."""
        batch, place = divmod(position, self.batch_size)
        epoch = self._epoch_of(batch)
        owners, turns = self._epoch(epoch)
        inside = batch - self._before(epoch)
        k = int(owners[inside])
        return int(self.members[k][self.orders[k][int(turns[inside]) * self.batch_size + place]])

    def _before(self, epoch: int) -> int:
        """Batches of all epochs before this one."""
        return sum(epoch * count // self.batch_size for count in self.counts)

    def _epoch_of(self, batch: int) -> int:
        """The last epoch that begins at or before a batch; rounding holds at most one batch of each bucket back."""
        least = batch * self.batch_size // sum(self.counts)
        most = (batch + len(self.counts) + 1) * self.batch_size // sum(self.counts) + 2
        return least + bisect_right(range(least, most), batch, key=self._before) - 1

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each batch of an epoch: its bucket, and how many batches of the bucket came before, over all epochs."""
        edges = [[e * count // self.batch_size for e in (epoch, epoch + 1)] for count in self.counts]
        owners = np.repeat(np.arange(len(edges)), [last - first for first, last in edges])
        owners = owners[permutation(len(owners), self.seed, "buckets", epoch)]
        turns = np.empty(len(owners), np.int64)
        for k, (first, last) in enumerate(edges):
            turns[owners == k] = np.arange(first, last)
        return owners, turns


class MixedOrder:
    """Sample numbers by global position over several orders, each of which keeps its own.

    Each `BLOCK` of places holds a fixed number for each order, shuffled by (seed, block). So which order a place is of,
    and which turn of that order, follow from the position alone. A place is one sample; or a whole batch, where the
    samples of a batch must be of one order.

    Args:
        orders: what is mixed.
        bases: what is added to the sample numbers of each.
        shares: places in a block of each; their sum is `BLOCK`.
        unit: samples to a place.
    """

    def __init__(
        self,
        *,
        orders: Sequence["Order | BucketedOrder"],
        bases: Sequence[int],
        shares: Sequence[int],
        seed: int,
        unit: int = 1,
    ) -> None:
        assert sum(shares) == BLOCK
        self.orders, self.bases, self.shares, self.seed = list(orders), list(bases), list(shares), seed
        self.unit = unit
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def __getitem__(self, position: int) -> int:
        """The sample at a global position."""
        number, rest = divmod(position, self.unit)
        block, place = divmod(number, BLOCK)
        owners, turns = self._block(block)
        k = int(owners[place])
        turn = block * self.shares[k] + int(turns[place])
        return self.bases[k] + self.orders[k][turn * self.unit + rest]

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
