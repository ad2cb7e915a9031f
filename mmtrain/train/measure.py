"""What a step costs: bytes of the tensors that are alive at its worst moment, and floating-point operations.

Both are read off the operations themselves, on real tensors or on the meta device, where nothing is computed.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Tally(TorchDispatchMode):
    """Counts, of what is done inside, ``flops``, and ``peak``: the most bytes of new storages alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.alive, self.peak = 0, 0, 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        counted = flop_registry.get(func._overloadpacket)
        if counted is not None:
            self.flops += int(counted(*args, **(kwargs or {}), out_val=result))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._seen(tensor.untyped_storage())
        return result

    def _seen(self, storage: torch.UntypedStorage) -> None:
        name = id(storage)
        if name in self._known:
            return
        self._known[name] = storage.nbytes()
        self.alive += self._known[name]
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, name)

    def _gone(self, name: int) -> None:
        self.alive -= self._known.pop(name)


@contextmanager
def fused(tally: Tally) -> Iterator[None]:
    """Inside, attention keeps what a fused kernel keeps: on the meta device torch would make whole score matrices.

    The function itself is exchanged: a mode of torch's would not be on in a backward pass that computes blocks again.

    Args:
        tally: whose ``flops`` attention's are added to.
    """

    def count(flops: int) -> None:
        tally.flops += flops

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = _Attention.apply(query, key, value, count)
        return found

    own = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = own


class _Attention(torch.autograd.Function):
    """The shapes of fused attention (Dao et al. 2022): it saves q, k, v, the output and one number a query, and its
    backward pass makes five products where the forward pass makes two."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, count: Callable[[int], None]) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        product = 2 * q.numel() * k.shape[-2]
        count(2 * product)
        ctx.later = lambda: count(5 * product)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.later()
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def measured(work: Callable[[], object], outline: bool) -> Tally:
    """The tally of some work; ``outline`` says that it is done on the meta device."""
    tally = Tally()
    if outline:
        with fused(tally), tally:
            work()
    else:
        with tally:
            work()
    return tally
