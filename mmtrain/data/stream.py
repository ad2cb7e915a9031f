"""From positions to batches: what turns an order of samples into a loader that can stop and go on anywhere.

Position p counts samples over all epochs; batch b is the positions [bG, (b + 1)G), and rank r takes its slice. So any
number of workers or ranks gives the same batches, and to go on after a stop takes one integer: the batches consumed.
What the samples are, this file does not know: that is `source.py` and `mixture.py`.
"""

import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from mmtrain.batch import Batch
from mmtrain.data.decode import BadSample
from mmtrain.errors import UserError

WORKER_TIMEOUT = 120.0  # seconds in which a worker must deliver, or the run stops


class Positions(Protocol):
    """Sample numbers by global position, a pure function of it."""

    def __getitem__(self, position: int) -> int: ...


@dataclass
class Row:
    """One sample of a batch: frames uint8 ``[t c h w]``, or encoder outputs by name without batch axis;
    and a mask float32 ``[h w]`` in [0, 1], where it has one."""

    key: str
    caption: str
    frames: Tensor | None
    encoded: dict[str, Tensor]
    mask: Tensor | None = None


class Stream(ABC):
    """Numbered samples, an order of them for each seed, and the loader that follows from both.

    The state of a stream in a run is the number of batches consumed and ``replaced``; everything else is a pure
    function of the seed and the shards.

    Attributes:
        shards: where the samples are, in words.
    """

    shards: str

    @abstractmethod
    def __len__(self) -> int:
        """Samples."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What the samples hold: ``frames`` or ``encoded``."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the shards' contents."""

    @property
    @abstractmethod
    def replaced(self) -> dict[int, BadSample]:
        """Each sample that did not decode, by its number, in the order of their finding; `note` adds to it."""

    @property
    @abstractmethod
    def bad_counts(self) -> dict[str, dict[str, int]]:
        """Name of shard → kind of fault → samples that were replaced."""

    @abstractmethod
    def order(self, seed: int, batch_size: int) -> Positions:
        """The order of a run. The batch size plays a part only where the samples of a batch must be alike."""

    @abstractmethod
    def row(self, i: int, seed: int, position: int, bad: dict[int, BadSample]) -> Row:
        """Sample i, or the same substitute on every run; each sample that failed is added to ``bad`` by its number.

        Raises:
            UserError: if there is none that decodes, or the bytes cannot be read.
        """

    @property
    def horizon(self) -> int:
        """Samples to come that `expect` is told of; 0 where all that is needed is there."""
        return 0

    def expect(self, samples: np.ndarray) -> None:  # noqa: B027  (most streams have all that they need)
        """Told before each batch of the samples to come, int64 in their order, so that they are fetched meanwhile."""

    @abstractmethod
    def note(self, bad: dict[int, BadSample]) -> None:
        """Counts samples that did not decode. Raises UserError once they are more than the stated share."""

    def loader(
        self,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        consumed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        timeout: float = WORKER_TIMEOUT,
    ) -> DataLoader:
        """A loader of `Batch` whose length is the whole plan and whose iteration starts after what was consumed.

        Args:
            batch_size: samples of one batch over all ranks together; each rank yields its share.
            steps: batches of the whole plan.
            consumed: batches that training has used already.
            timeout: seconds in which a worker must deliver a batch.

        Raises:
            UserError: if the ranks cannot share a batch evenly; while iterating, if too many samples do not decode, a
                shard cannot be read, or a worker dies or hangs.
        """
        if batch_size < 1 or batch_size % world_size:
            fix = "choose a multiple of the number of ranks"
            raise UserError("batch_size", str(batch_size), f"a batch that {world_size} rank(s) share evenly", fix)
        return _Loader(
            _Batches(self, seed),
            batch_size=None,  # the sampler names whole batches, so collating stays ours
            sampler=_Plan(self, self.order(seed, batch_size), batch_size, steps, consumed, rank, world_size),
            num_workers=num_workers,
            timeout=timeout if num_workers else 0,
        )


@dataclass
class _Parcel:
    """What a worker hands over: a batch, the samples that failed, and a fault as the four parts of a UserError (an
    exception raised in a worker would reach the user as a wall of text)."""

    batch: Batch | None = None
    bad: dict[int, BadSample] = field(default_factory=dict)
    fault: tuple[str, str, str, str] | None = None


class _Plan(Sampler[list[tuple[int, int]]]):
    """Batch after batch, the (position, sample) pairs of one rank."""

    def __init__(
        self,
        stream: Stream,
        order: Positions,
        batch_size: int,
        steps: int,
        consumed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.stream = stream
        self.order, self.batch_size, self.steps, self.consumed = order, batch_size, steps, consumed
        self.share = batch_size // world_size
        self.rank = rank

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        coming: deque[int] = deque()  # samples of the whole batches from this one on
        for batch in range(self.consumed, self.steps):
            self._look_ahead(batch * self.batch_size, coming)
            first = batch * self.batch_size + self.rank * self.share
            yield [(p, self.order[p]) for p in range(first, first + self.share)]

    def _look_ahead(self, first: int, coming: "deque[int]") -> None:
        """Brings ``coming`` to the samples from position ``first`` on, and tells the stream of them."""
        if not self.stream.horizon:
            return
        for _ in range(min(self.batch_size, len(coming))):
            coming.popleft()
        end = min(first + self.stream.horizon, self.steps * self.batch_size)
        coming.extend(self.order[p] for p in range(first + len(coming), end))
        self.stream.expect(np.array(coming, np.int64))


class _Batches(Dataset[_Parcel]):
    """Map-style: the pairs of a batch → the batch."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self.seed = stream, seed

    def __getitem__(self, pairs: list[tuple[int, int]]) -> _Parcel:
        parcel = _Parcel()
        try:
            rows = [self.stream.row(i, self.seed, position, parcel.bad) for position, i in pairs]
            parcel.batch = _stack(rows, [position for position, _ in pairs])
        except UserError as why:
            parcel.fault = (why.where, why.came, why.wanted, why.fix)
        return parcel


def _stack(rows: list[Row], positions: list[int]) -> Batch:
    """Rows → Batch; frames uint8 ``[b t c h w]``, encoder outputs as float32 with first axis b."""
    keys, captions = [r.key for r in rows], [r.caption for r in rows]
    clips = [r.frames for r in rows if r.frames is not None]
    _same_shape(keys, {"frames": clips} if clips else {n: [r.encoded.get(n) for r in rows] for n in rows[0].encoded})
    masks = _masks(keys, [r.mask for r in rows])
    if clips:
        return Batch(keys, positions, captions, torch.stack(clips), masks=masks)
    encoded = {n: torch.stack([r.encoded[n] for r in rows]) for n in rows[0].encoded}
    return Batch(keys, positions, captions, None, encoded, masks)


def _masks(keys: list[str], masks: list[Tensor | None]) -> Tensor | None:
    """Float32 ``[b h w]``: all counts of a sample without a mask; None where none has one."""
    given = next((mask for mask in masks if mask is not None), None)
    if given is None:
        return None
    whole = [torch.ones_like(given) if mask is None else mask for mask in masks]
    _same_shape(keys, {"mask": whole})
    return torch.stack(whole)


def _same_shape(keys: list[str], columns: dict[str, Any]) -> None:
    for name, column in columns.items():
        shapes = [None if t is None else tuple(t.shape) for t in column]
        for other, shape in zip(keys, shapes, strict=True):
            if shape != shapes[0]:
                came = f"{name} of {other!r} is {shape}, of {keys[0]!r} {shapes[0]}"
                raise UserError("batch", came, "equal shapes in a batch", "set num_frames and size of the data source")


class _Loader(DataLoader[_Parcel]):
    """A DataLoader that opens the parcels where they are consumed: faults are raised and bad samples counted here, in
    the training process, in the order of the batches."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        stream: Stream = self.dataset.stream  # type: ignore[attr-defined]
        for parcel in self._parcels():
            if parcel.bad:
                stream.note(parcel.bad)
            if parcel.fault:
                raise UserError(*parcel.fault)
            assert parcel.batch is not None
            yield parcel.batch

    def _parcels(self) -> Iterator[_Parcel]:
        """The workers' parcels; a worker that died or hangs is the user's to know of, without PyTorch's trace."""
        try:
            yield from super().__iter__()
        except (RuntimeError, ConnectionError, EOFError) as why:
            if isinstance(why, RuntimeError) and not str(why).startswith("DataLoader"):
                raise
            _hush()
            hangs = "timed out" in str(why)
            came = f"no batch came for {self.timeout:g} s" if hangs else "a worker died"
            fix = "look at memory and the disk, set trainer.num_workers=0 to see why, then resume: no step is lost"
            raise UserError(f"data workers ({self.num_workers})", came, "a batch in time", fix) from why


def _hush() -> None:
    """A worker's death is known now: torch's handler of SIGCHLD would tell it again, as an error in the middle of
    whatever runs when the signal comes. The next loader arms it again."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    for _ in range(2):
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # the signal came just now
            continue
        break
    signal_handling._SIGCHLD_handler_set = False
