"""Two ranks beside one: the same work for each, over gloo on this machine; and the bytes that they exchange in a step.

`docs/scaling.md` predicts more ranks from these numbers. A rank is a process of one thread, so that two ranks need two
free cores: on a busy machine wall time says more of the machine than of the ranks, and processor time stands beside it.
"""

import os
import socket
import statistics
import time
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from benchmarks.report import Report
from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.train.lighten import lighten

BATCH, SIDE, STEPS = 4, 64, 3


def _model() -> tuple[Any, list[torch.nn.Parameter]]:
    cfg = config.compose("sd_lora", ["dataset.shards=nowhere"])
    model = config.build(cfg.backbone)
    attached(model, cfg.adapters)
    lighten(model, config.build(cfg.trainer))
    return model, [w for w in model.network.parameters() if w.requires_grad]


class _Step(torch.nn.Module):
    """A step's loss, as one module for DDP."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network, self.model = model.network, [model]  # a list: registered once

    def forward(self, latents: Any, level: Any, condition: Any) -> Any:
        return (self.model[0].predict(latents, level, condition) - latents).square().mean()


def _rank(index: int, count: int, port: int, found: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=index, world_size=count)
    model, weights = _model()
    sent = [0]
    step: Any = _Step(model)
    if count > 1:
        step = DistributedDataParallel(step, broadcast_buffers=False)

        def hook(state: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            sent[0] += bucket.buffer().numel() * bucket.buffer().element_size()
            whole = distributed.all_reduce(bucket.buffer().div_(count), async_op=True)
            return whole.get_future().then(lambda future: future.value()[0])

        step.register_comm_hook(None, hook)
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
    latents, level, condition = model.example(BATCH, 1, SIDE, SIDE)
    given = torch.randn(latents.shape), level, {n: torch.randn(t.shape) for n, t in condition.items()}
    times = []
    for _ in range(STEPS + 1):
        distributed.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        step(*given).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    if index == 0:
        found.put((times[1:], sent[0] // (STEPS + 1), sum(w.numel() for w in weights)))
    distributed.destroy_process_group()


def _ranks(count: int) -> tuple[list[tuple[float, float]], int, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    found = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (count, port, found), nprocs=count)  # raises what a rank raises
    told: tuple[list[tuple[float, float]], int, int] = found.get()
    return told


def weak_scaling(report: Report) -> None:
    """One rank and two, each with the same batch."""
    rows, alone = [], 0.0
    for count in (1, 2):
        times, sent, trained = _ranks(count)
        wall, cpu = (statistics.median(time[i] for time in times) for i in (0, 1))
        alone = alone or wall
        rows.append(
            {
                "ranks": count,
                "samples a step": count * BATCH,
                "s/step, wall": wall,
                "s/step, processor": cpu,
                "weak scaling by wall": alone / wall,
                "bytes to all-reduce": sent,
                "4 × weights that train": 4 * trained,
            }
        )
    assert rows[1]["bytes to all-reduce"] == rows[1]["4 × weights that train"], "the formula of docs/scaling.md"
    report.table(f"ranks over gloo: Stable Diffusion (tiny) LoRA, batch {BATCH} each", rows)
