"""FSDP2: every layer's weights lie in pieces on all ranks, and are put together while it is at work.

Lightning gives the mesh of devices (`ModelParallelStrategy`); what is cut, and that a checkpoint is whole again, is
here. Units are the blocks of module lists, and each remaining layer that has weights of its own. A weight that belongs
to no layer (a temperature) stays whole on every rank, and its gradient is averaged by a hook.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(root: nn.Module, weights: Mapping[str, nn.Parameter], mesh: DeviceMesh) -> dict[str, nn.Parameter]:
    """Cut all layers of a module, and return what trains by the same names as before."""
    places = {id(weight): name for name, weight in root.named_parameters(remove_duplicate=False)}
    for unit in dict.fromkeys(_units(root)):  # adapters know the network that they stand in
        fully_shard(unit, mesh=mesh)
    now = dict(root.named_parameters(remove_duplicate=False))
    kept = {name: now[places[id(weight)]] for name, weight in weights.items()}
    for weight in kept.values():
        if not isinstance(weight, DTensor):
            weight.register_post_accumulate_grad_hook(_average)
    return kept


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks of lists, and layers with weights that lie in none."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        elif not list(child.children()):
            if list(child.parameters(recurse=False)):
                yield child
        else:
            yield from _units(child)


def held(module: nn.Module, ranks: int) -> int:
    """Bytes that each of several ranks holds of a module that is cut: of every weight that is, a piece along its first
    axis, of all other tensors the whole."""
    cut = {id(weight) for unit in _units(module) for weight in unit.parameters()} if ranks > 1 else set()
    kept = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()] if id(t) not in cut)
    pieces = (w.data[: -(-len(w) // ranks)] for w in module.parameters() if id(w) in cut)
    return kept + sum(piece.numel() * piece.element_size() for piece in pieces)


def gathered(module: nn.Module) -> int:
    """Bytes of the two largest units, which stand whole beside the pieces: the one at work, and the next."""
    sizes = (sum(w.numel() * w.element_size() for w in unit.parameters()) for unit in dict.fromkeys(_units(module)))
    return sum(sorted(sizes)[-2:])


def _average(weight: Tensor) -> None:
    assert weight.grad is not None
    distributed.all_reduce(weight.grad)
    weight.grad /= distributed.get_world_size()


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all ranks, on every rank; of one that was not cut, itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor cut as another one is."""
    if isinstance(pattern, DTensor) and tensor.shape == pattern.shape:
        return distribute_tensor(tensor, pattern.device_mesh, pattern.placements)
    return tensor


def clip(weights: Mapping[str, nn.Parameter], limit: float) -> None:
    """Scale gradients, cut and whole ones, so that the norm of all together is at most ``limit``."""
    grads = [weight.grad for weight in weights.values() if weight.grad is not None]
    squares = [whole(torch.linalg.vector_norm(grad)).square() for grad in grads]
    scale = (limit / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)


def recut(optimizer: torch.optim.Optimizer, weights: Mapping[str, Any], former: Mapping[str, Any]) -> None:
    """Give an optimizer of cut weights the state that the one of whole weights had, ``former`` by name."""
    for name, weight in weights.items():
        if former.get(name):
            optimizer.state[weight] = {part: like(value, weight) for part, value in former[name].items()}
