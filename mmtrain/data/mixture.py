"""`Mixture`: several sources as one stream, in stated shares, as exact under resume as one source is."""

import hashlib
import json
from dataclasses import replace

import numpy as np

from mmtrain.data.decode import BadSample
from mmtrain.data.order import BLOCK, MixedOrder, shares
from mmtrain.data.source import Source
from mmtrain.data.stream import Row, Stream
from mmtrain.errors import UserError


class Mixture(Stream):
    """Sources by name, each drawn from in proportion to its weight and in its own order, with epochs of its own.

    Which source a position comes from, and which place in that source's order, are a pure function of (seed, position,
    weights): over every 10 000 positions the weights hold to one part in 10 000. So the state is that of one source,
    the batches consumed and the samples replaced. If a source has buckets, sources take turns by whole batches, and the
    weights hold over every 10 000 batches. Keys have their source's name in front: ``photographs/000001``.

    Args:
        sources: by name; all of pixels or all of encoder outputs. Samples of one batch must have one shape: give
            each source the same num_frames and size, or buckets.
        weights: shares of the samples that training sees, by the same names; they need not add up to 1.

    Raises:
        UserError: if names do not agree, kinds are mixed, or a weight is too small ever to be drawn.
    """

    def __init__(self, *, sources: dict[str, Source], weights: dict[str, float]) -> None:
        if not sources or set(sources) != set(weights):
            came = f"weights for {', '.join(sorted(weights)) or 'none'}"
            wanted = f"one for each of {', '.join(sorted(sources)) or 'at least one source'}"
            raise UserError("mixture", came, wanted, "name the same sources in sources and weights")
        self.names = sorted(sources)  # the order in which a config names them plays no part
        self.sources = {name: sources[name] for name in self.names}
        self.weights = {name: float(weights[name]) for name in self.names}
        if any(not 0 <= w < float("inf") for w in self.weights.values()) or not any(self.weights.values()):
            raise UserError("mixture weights", str(self.weights), "numbers above 0", "leave out what is not wanted")
        self.shares = shares(list(self.weights.values()))
        for name, share in zip(self.names, self.shares, strict=True):
            if not share:
                came = f"{self.weights[name]:g} of {sum(self.weights.values()):g}"
                fix = "raise the weight, or leave the source out"
                raise UserError(f"mixture weights.{name}", came, f"at least one part in {BLOCK}", fix)
        kinds = {name: source.kind for name, source in self.sources.items()}
        if len(set(kinds.values())) > 1:
            raise UserError("mixture", str(kinds), "pixels or encoder outputs throughout", "encode the others, or none")
        self.shards = ", ".join(source.shards for source in self.sources.values())
        self.bases = [0]
        for source in self.sources.values():
            self.bases.append(self.bases[-1] + len(source))

    def __len__(self) -> int:
        return self.bases[-1]

    @property
    def kind(self) -> str:
        return self.sources[self.names[0]].kind

    @property
    def fingerprint(self) -> str:
        text = json.dumps([[name, source.fingerprint] for name, source in self.sources.items()])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def replaced(self) -> dict[int, BadSample]:
        pairs = zip(self.bases, self.sources.values(), strict=False)
        return {base + i: why for base, source in pairs for i, why in source.replaced.items()}

    @property
    def bad_counts(self) -> dict[str, dict[str, int]]:
        found = {name: source.bad_counts for name, source in self.sources.items()}
        return {f"{name}/{shard}": kinds for name, counts in found.items() for shard, kinds in counts.items()}

    def order(self, seed: int, batch_size: int) -> MixedOrder:
        orders = [source.order(seed, batch_size) for source in self.sources.values()]
        bucketed = any(source.buckets is not None for source in self.sources.values())
        unit = batch_size if bucketed else 1
        return MixedOrder(orders=orders, bases=self.bases[:-1], shares=self.shares, seed=seed, unit=unit)

    def row(self, i: int, seed: int, position: int, bad: dict[int, BadSample]) -> Row:
        base, name = self._owner(i)
        failed: dict[int, BadSample] = {}
        try:
            row = self.sources[name].row(i - base, seed, position, failed)
            return replace(row, key=f"{name}/{row.key}")  # sources number their samples alike
        finally:
            bad |= {base + number: why for number, why in failed.items()}

    @property
    def horizon(self) -> int:
        pairs = zip(self.sources.values(), self.shares, strict=True)
        return max(source.horizon * BLOCK // share for source, share in pairs)

    def expect(self, samples: np.ndarray) -> None:
        for base, source in zip(self.bases, self.sources.values(), strict=False):
            source.expect(samples[(base <= samples) & (samples < base + len(source))] - base)

    def note(self, bad: dict[int, BadSample]) -> None:
        for i, why in bad.items():
            base, name = self._owner(i)
            self.sources[name].note({i - base: why})

    def _owner(self, i: int) -> tuple[int, str]:
        """The first number of the source that has sample i, and its name."""
        for base, (name, source) in zip(self.bases, self.sources.items(), strict=False):
            if i < base + len(source):
                return base, name
        raise IndexError(i)
