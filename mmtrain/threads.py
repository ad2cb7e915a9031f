"""What a process asks of the machine before heavy work: threads that pay, and memory that stays.

On a machine whose cores are busy two threads can be fifty times slower than one; and glibc gives the pages of each
large tensor back to the system, so that every operation of a step faults them in again.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGE = 1 << 30


def keep_pages() -> bool:
    """Tell glibc's allocator to keep freed memory; whether it took the advice (other platforms do as they do)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def multiplies_bf16(accelerator: str) -> bool:
    """Whether a device has units for products of bfloat16: a CPU with AMX tiles or AVX-512's dot products, a GPU of
    NVIDIA's Ampere or later.

    Elsewhere 16-bit training is slower than 32-bit: thirteen times on a CPU with AVX2 alone.
    """
    import torch

    if accelerator == "cpu" or not torch.cuda.is_available():
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.cuda.get_device_capability() >= (8, 0)


def calibrate(work: Callable[[], object]) -> int:
    """Set and return the thread count that does ``work`` fastest: 1, 2, 4 … up to the cores this process may use.

    The work is done three times per count, the best of two timed; a count must win by a tenth over a smaller one.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    best, best_seconds, count = 1, float("inf"), 1
    while count <= cores:
        torch.set_num_threads(count)
        work()
        seconds = min(_timed(work) for _ in range(2))
        if seconds < 0.9 * best_seconds:
            best, best_seconds = count, seconds
        elif seconds > 1.5 * best_seconds:
            break
        count *= 2
    torch.set_num_threads(best)
    return best


@contextmanager
def as_many_as_pay(work: Callable[[], object]) -> Iterator[int]:
    """The thread count of `calibrate` while it lasts, then the one before: for work that one of several processes does
    alone, before each of them has to be content with its share of the cores."""
    import torch

    before = torch.get_num_threads()
    try:
        yield calibrate(work)
    finally:
        torch.set_num_threads(before)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
