"""How many threads pay: on a machine whose cores are busy, two can be fifty times slower than one."""

import os
import time
from collections.abc import Callable

import torch


def calibrate(work: Callable[[], object]) -> int:
    """Set and return the thread count that does ``work`` fastest: 1, 2, 4 … up to the cores this process may use.

    The work is done three times per count, the best of two timed; a count must win by a tenth over a smaller one.
    """
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


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
