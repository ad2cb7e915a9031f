"""Memory and time of the losses over all pairs of a batch: ours in tiles beside the plain ones that hold the matrix.

    make bench-align

Memory is the peak of live storages in a forward and a backward pass beyond the embeddings themselves, counted on the
meta device, so that 32k embeddings need neither the time nor the memory; the exponent of its growth is that of the last
doubling. Time is the processor's, in alternate rounds, at sizes that one core can do.
"""

import math
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.report import Report
from benchmarks.rounds import spread
from mmtrain.objective.tiles import Names, infonce, sigmoid
from mmtrain.threads import keep_pages

WIDTH, TILE, ROUNDS = 512, 512, 3
SIZES = [1024 * 2**i for i in range(6)]
TIMED = (1024, 2048, 4096)


class Peak(TorchDispatchMode):
    """Bytes of the storages that are alive, and their maximum, of what is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known | before:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return made

    def _gone(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.live -= size


def plain_infonce(first: Tensor, second: Tensor, t: Tensor, b: Tensor) -> Tensor:
    logits = t.exp() * first @ second.T
    pairs = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def plain_sigmoid(first: Tensor, second: Tensor, t: Tensor, b: Tensor) -> Tensor:
    answers = 2 * torch.eye(len(first), device=first.device) - 1
    return -F.logsigmoid(answers * (t.exp() * first @ second.T + b)).sum() / len(first)


def tiled_infonce(first: Tensor, second: Tensor, t: Tensor, b: Tensor) -> Tensor:
    return infonce(first, second, t, Names.apart(len(first), first.device), TILE).loss.mean()


def tiled_sigmoid(first: Tensor, second: Tensor, t: Tensor, b: Tensor) -> Tensor:
    return sigmoid(first, second, t, b, Names.apart(len(first), first.device), TILE).loss.mean()


Pass = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Pass, Pass]] = {
    "InfoNCE": (plain_infonce, tiled_infonce),
    "sigmoid": (plain_sigmoid, tiled_sigmoid),
}


def inputs(count: int, device: str) -> list[Tensor]:
    if device == "meta":
        first, second = (torch.empty(count, WIDTH, device=device) for _ in range(2))
    else:
        first, second = F.normalize(torch.randn(2, count, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    scalars = [torch.tensor(value, device=device) for value in (2.5, -10.0)]
    return [tensor.requires_grad_() for tensor in (first, second, *scalars)]


def peak(loss: Pass, count: int) -> int:
    """Bytes at the most, gradients of the embeddings included."""
    given = inputs(count, "meta")
    with Peak() as seen:
        loss(*given).backward()
    return seen.peak


def seconds(loss: Pass, count: int) -> float:
    given = inputs(count, "cpu")
    start = time.process_time()  # of one thread: other work on the machine does not count
    loss(*given).backward()
    return time.process_time() - start


def memory_table(report: Report) -> None:
    title = f"peak of a forward and a backward pass, width {WIDTH}, float32, tiles of {TILE} rows, MiB"
    names = [f"{n}, {how}" for n in LOSSES for how in ("plain", "tiled")]
    found = {n: [peak(loss, n) for pair in LOSSES.values() for loss in pair] for n in SIZES}
    rows = [
        {"embeddings": f"{count:,}", **{n: f"{size / 2**20:,.1f}" for n, size in zip(names, row, strict=True)}}
        for count, row in found.items()
    ]
    growth = [math.log2(a / b) for a, b in zip(found[SIZES[-1]], found[SIZES[-2]], strict=True)]
    report.table(title, [*rows, {"embeddings": "grows as B^", **dict(zip(names, growth, strict=True))}])


def time_table(report: Report) -> None:
    rows = []
    for count in TIMED:
        for name, pair in LOSSES.items():
            found: list[list[float]] = [[], []]
            for _ in range(ROUNDS):
                for i, loss in enumerate(pair):
                    found[i].append(seconds(loss, count))
            plain, tiled = (spread(s, ".3f") for s in found)
            ratio = statistics.median(found[1]) / statistics.median(found[0])
            row = {"embeddings": count, "loss": name, "plain, s": plain, "tiled, s": tiled, "tiled / plain": ratio}
            rows.append({**row, "aim": "at most 1.5"})
    title = f"processor seconds of a forward and a backward pass, one thread, min – median – max of {ROUNDS} rounds"
    report.table(title, rows)


def main() -> None:
    keep_pages()
    torch.set_num_threads(1)
    report = Report("tiles")
    memory_table(report)
    time_table(report)
    report.write()


if __name__ == "__main__":
    main()
