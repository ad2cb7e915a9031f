"""What a named device holds and how fast it multiplies, by its maker's data sheet (dense products, no sparsity)."""

import os
import time
from dataclasses import dataclass

import torch

from mmtrain.errors import UserError

SHARES = (0.2, 0.45)
"""Of its peak, what trainings of diffusion models reach: poorly and well tuned."""


@dataclass(frozen=True)
class Device:
    """A device in numbers: bytes of memory; operations a second in 32 bits (TF32 where it has that) and in 16."""

    name: str
    memory: int
    flops_32: float
    flops_16: float


def _gpu(name: str, gib: float, tera_32: float, tera_16: float) -> Device:
    return Device(name, int(gib * 2**30), tera_32 * 1e12, tera_16 * 1e12)


DEVICES = {
    "t4": _gpu("NVIDIA T4", 15.0, 8.1, 65),
    "3090": _gpu("NVIDIA RTX 3090", 24, 35.6, 71),
    "4090": _gpu("NVIDIA RTX 4090", 24, 82.6, 165),
    "5090": _gpu("NVIDIA RTX 5090", 32, 104.8, 210),
    "l40s": _gpu("NVIDIA L40S", 44.5, 183, 362),
    "a100-40": _gpu("NVIDIA A100 40 GB", 39.5, 156, 312),
    "a100": _gpu("NVIDIA A100 80 GB", 79.3, 156, 312),
    "h100": _gpu("NVIDIA H100 SXM", 79.6, 494, 989),
    "h200": _gpu("NVIDIA H200 SXM", 139.8, 494, 989),
}


def device(name: str) -> Device:
    """A device by its short name; ``cpu`` is this machine's processor, measured now on one thread.

    Raises:
        UserError: nothing is known by that name.
    """
    if name == "cpu":
        return Device("this machine's processor, one thread", _memory(), *[_rate()] * 2)
    if name not in DEVICES:
        raise UserError("--device", name, f"cpu, {', '.join(DEVICES)}", "choose one of them")
    return DEVICES[name]


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _rate(side: int = 512, tries: int = 5) -> float:
    """Operations a second of a product in float32: the best of a few tries."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, best = torch.ones(side, side), 0.0
    for _ in range(tries):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return best
