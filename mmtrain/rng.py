"""Every random draw of training, keyed instead of stateful, so that no generator state is ever saved.

A draw is named by (seed, stream name, step, sample position). The same name gives the same numbers on any rank, in any
worker, and after any number of restarts.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmtrain.errors import UserError

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

    def part(self, places: slice) -> "Rng":
        """The draws of some of the samples: the same numbers that they have in the whole."""
        return Rng(self.seed, self.step, self.positions[places])

    def dropout(self) -> "KeyedDropout":
        """Inside, every dropout of torch draws from these streams instead of the global generator."""
        return KeyedDropout(self)

    def _generators(self, stream: str) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(key(self.seed, stream, self.step, p)) for p in self.positions]

    def _rows(self, draw: Callable[..., Tensor], stream: str, shape: Sequence[int]) -> Tensor:
        """A row for each sample; the type is said, since Lightning's precision can change the default one."""
        return torch.stack([draw(tuple(shape), generator=g, dtype=torch.float32) for g in self._generators(stream)])

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 ``[b, *shape]``, drawn on the CPU so that devices agree."""
        return self._rows(torch.randn, stream, shape)

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform float32 in [0, 1), ``[b, *shape]``."""
        return self._rows(torch.rand, stream, shape)

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


class KeyedDropout(TorchDispatchMode):
    """Makes dropout a draw of ours: the mask of a sample does not depend on which samples stand beside it.

    Dropout comes down to one of two operators, whatever layer or attention it is in; each call has a stream of its own,
    numbered in the order of calls. The first axis of what is dropped out is the batch, or the batch times something
    (frames, heads), a sample's rows together.
    """

    inside: ClassVar[list["KeyedDropout"]] = []  # those that are entered, the innermost last

    def __init__(self, rng: Rng, calls: int = 0) -> None:
        super().__init__()
        self.rng, self.calls = rng, calls

    def __enter__(self) -> Self:
        self.inside.append(self)
        return super().__enter__()

    def __exit__(self, *why: Any) -> None:
        self.inside.remove(self)
        super().__exit__(*why)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = _DRAWS.get(func)
        return func(*args, **(kwargs or {})) if found is None else found(self, *args, **(kwargs or {}))

    def keep(self, like: Tensor, chance: float) -> Tensor:
        """Boolean of the tensor's shape: true with the given chance.

        Raises:
            UserError: the tensor's first axis is not that of the samples.
        """
        samples = len(self.rng.positions)
        if not like.ndim or len(like) % samples:
            came = f"of a tensor {list(like.shape)}, whose first axis does not hold {samples} samples"
            raise UserError("dropout", came, "samples on the first axis", "choose other targets, or dropout 0")
        stream, self.calls = f"dropout {self.calls}", self.calls + 1
        shape = (len(like) // samples, *like.shape[1:])
        return (self.rng.uniform(stream, shape) < chance).flatten(0, 1).to(like.device)

    def _bernoulli(self, tensor: Tensor, p: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
        return tensor.copy_(self.keep(tensor, p))

    def _native(self, tensor: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        if train is False:
            return tensor, torch.ones_like(tensor, dtype=torch.bool)
        mask = self.keep(tensor, 1 - p)
        return tensor * mask / (1 - p), mask


_DRAWS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.bernoulli_.float: KeyedDropout._bernoulli,
    torch.ops.aten.native_dropout.default: KeyedDropout._native,
}


def computed_again(block: Callable[..., Any], *given: Any) -> Any:
    """torch's checkpoint of a block, whose second pass has the dropout of the first."""
    if not KeyedDropout.inside:
        return checkpoint(block, *given, use_reentrant=False)
    around = KeyedDropout.inside[-1]
    before = around.calls

    def keyed(*given: Any) -> Any:
        with KeyedDropout(around.rng, before) as own:
            made = block(*given)
        around.calls = own.calls
        return made

    return checkpoint(keyed, *given, use_reentrant=False)


def droppers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """What has a dropout in a network: it is at work while that part is in training mode."""
    return [module for module in network.modules() if _has_dropout(module)]


def drops_out(network: torch.nn.Module) -> bool:
    """Whether a dropout is at work in a network."""
    return any(module.training and _has_dropout(module) for module in network.modules())


def _has_dropout(module: torch.nn.Module) -> bool:
    """Of a layer, or of an attention that holds its chance as a number."""
    chances = [v for name, v in vars(module).items() if "dropout" in name and isinstance(v, float)]
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        chances.append(module.p)
    return any(chances)
