"""How a LoRA step on Stable Video Diffusion grows with batch, frames, resolution and ranks, in time and in memory.

    make bench-scale

The tiny network that is shipped, LoRA on its temporal layers, fp32, one thread for each rank. Memory and operations are
those of `mmtrain check` (a step on the meta device); three real steps show how far it is off. Time is the processor's.
Exponents are least squares through the logarithms; where the last doubling costs much more than twice, it says why.
Below, the published sizes: what 14 and 25 frames of 576 × 1024 take, and what each saving gives; and the predictions of
`docs/scaling.md`. ``BENCH_PART="growth memory published ranks"`` chooses among them.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.predict import predictions
from benchmarks.ranks import weak_scaling
from benchmarks.report import Report
from benchmarks.rounds import rounds_asked
from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.backbone.frozen import spare
from mmtrain.backbone.one_token import shorten
from mmtrain.backbone.recompute import recompute
from mmtrain.threads import keep_pages
from mmtrain.train import plan
from mmtrain.train.held import hold
from mmtrain.train.lighten import lighten
from mmtrain.train.measure import measured
from mmtrain.train.schedule import Fit

ROUNDS = rounds_asked(3)
AXES: dict[str, list[tuple[int, int, int]]] = {  # batch, frames, side in pixels
    "batch": [(1, 4, 64), (2, 4, 64), (4, 4, 64), (8, 4, 64)],
    "frames": [(1, 2, 64), (1, 4, 64), (1, 8, 64)],
    "side": [(1, 2, 32), (1, 2, 64), (1, 2, 128)],
}
WHY = {
    "batch": "samples have nothing to do with each other",
    "frames": "temporal attention compares all pairs of frames, at every place; it is small beside the rest",
    "side": "an area is a side squared; from 32 latents on, spatial self-attention, of all pairs of places, takes over",
}
REAL = ["backbone=svd", "backbone.path=stabilityai/stable-video-diffusion-img2vid-xt", "backbone.text_path=null"]
LORA = ["adapters.style.targets=temporal", "adapters.style.rank=16", "dataset.shards=nowhere"]


def settings(batch: int, frames: int, side: int) -> plan.Settings:
    return plan.Settings(batch, frames, side, side, sixteen=False)


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Least squares of log cost over log size."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def svd() -> tuple[Any, Any]:
    """The shipped network with LoRA, on the processor and as an outline."""
    cfg = config.compose("sd_lora", ["backbone=svd", *LORA])
    model = config.build(cfg.backbone)
    attached(model, cfg.adapters)
    outline, _ = plan.outline(cfg)
    for each in (model, outline):
        lighten(each, config.build(cfg.trainer))
    return model, outline


def work(model: Any, batch: int, frames: int, side: int) -> Callable[[], None]:
    """A step's forward and backward pass on drawn numbers."""
    latents, level, condition = model.example(batch, frames, side, side)
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(latents.shape, generator=draw)
    condition = {name: torch.randn(part.shape, generator=draw) for name, part in condition.items()}

    def once() -> None:
        model.network.zero_grad(set_to_none=True)
        (model.predict(latents, level, condition) - latents).square().flatten(1).mean(1).mean().backward()

    return once


def growth(report: Report, model: Any, outline: Any) -> None:
    done = {point: work(model, *point) for points in AXES.values() for point in points}
    seconds: dict[tuple[int, int, int], list[float]] = {point: [] for point in done}
    for _ in range(ROUNDS):
        for point, once in done.items():
            start = time.process_time()
            once()
            seconds[point].append(time.process_time() - start)
    tallies = {point: plan.step(outline, settings(*point)) for point in done}
    for place, (axis, points) in enumerate(AXES.items()):
        times = [min(seconds[point]) for point in points]
        peaks, flops = ([getattr(tallies[point], what) for point in points] for what in ("peak", "flops"))
        rows = [
            {"batch × frames × px": " × ".join(map(str, point)), "s, processor": t, "MB": p / 1e6, "GFLOP": f / 1e9}
            for point, t, p, f in zip(points, times, peaks, flops, strict=True)
        ]
        sizes = [float(point[place]) for point in points]
        fitted: dict[str, Any] = {"batch × frames × px": f"grows as {axis}^"}
        last: dict[str, Any] = {"batch × frames × px": "last doubling, ×"}
        for name in ("s, processor", "MB", "GFLOP"):
            column = [float(row[name]) for row in rows]
            fitted[name], last[name] = exponent(sizes, column), column[-1] / column[-2]
        report.table(f"{axis}: {WHY[axis]} (best of {ROUNDS} rounds)", [*rows, fitted, last])


def predicted(report: Report, model: Any, outline: Any) -> None:
    """The plan's peak against that of real steps."""
    rows = []
    for name, (made, seen, point) in {
        "SVD LoRA, as the run": (model, outline, (2, 4, 64)),
        **_other("Stable Diffusion LoRA", "sd_lora", [], (8, 1, 64)),
        **_other("Stable Diffusion LoRA, recomputed", "sd_lora", ["trainer.checkpointing=true"], (8, 1, 64)),
    }.items():
        real = measured(work(made, *point), outline=False).peak
        said = plan.step(seen, settings(*point)).peak
        rows.append(
            {"step": name, "measured MB": real / 1e6, "predicted MB": said / 1e6, "predicted / measured": said / real}
        )
    report.table("peak memory of a step beyond the weights, real tensors against the plan (aim: within 10 %)", rows)


def _other(name: str, recipe: str, words: list[str], point: tuple[int, int, int]) -> dict[str, Any]:
    cfg = config.compose(recipe, ["dataset.shards=nowhere", *words])
    model = config.build(cfg.backbone)
    attached(model, cfg.adapters)
    outline, _ = plan.outline(cfg)
    for each in (model, outline):
        lighten(each, config.build(cfg.trainer))
    return {name: (model, outline, point)}


def published(report: Report) -> tuple[float, int]:
    """SVD-XT at its own size, batch 1, 16 bits, its frozen weights held in 16 (`trainer.frozen_bits=16`): what each
    saving gives, the network's weights counted in.

    Returns:
        Operations of a step of 14 frames with all of it, and weights that train.
    """
    rows, found = [], (0.0, 0)
    ways: dict[str, list[Callable[[Any], Any]]] = {
        "stock": [],
        "diffusers' checkpointing": [lambda network: network.enable_gradient_checkpointing()],
        "frozen convolutions keep no input": [spare],
        "attention to one token is its value": [shorten],
        "blocks computed again": [recompute],
        "all: trainer.checkpointing=true": [spare, shorten, recompute],
    }
    for frames in (14, 25):
        base = 0
        for name, changes in ways.items():
            model, _ = plan.outline(config.compose("sd_lora", [*REAL, *LORA]))
            hold(model, Fit(steps=1, batch_size=1, precision="bf16-mixed", frozen_bits=16))
            for change in changes:
                change(model.network)
            cost = plan.step(model, plan.Settings(1, frames, 576, 1024, sixteen=True))
            held = sum(w.numel() * w.element_size() for w in model.network.parameters())
            base = base or cost.flops
            row = {"frames": frames, "how": name, "GB": (cost.peak + held) / 1e9, "TFLOP": cost.flops / 1e12}
            rows.append({**row, "× FLOP": cost.flops / base})
            report.say(rows[-1])
            if frames == 14:
                found = cost.flops, sum(w.numel() for w in model.network.parameters() if w.requires_grad)
    report.table("SVD-XT, 576 × 1024, LoRA on temporal layers, batch 1, bf16: network and step, by the plan", rows)
    return found


def main() -> None:
    keep_pages()
    torch.set_num_threads(1)
    wanted = os.environ.get("BENCH_PART", "growth memory published ranks").split()
    report = Report("scale" if "BENCH_PART" not in os.environ else f"scale-{'-'.join(wanted)}")
    if {"growth", "memory"} & set(wanted):
        model, outline = svd()
        if "growth" in wanted:
            growth(report, model, outline)
        if "memory" in wanted:
            predicted(report, model, outline)
    if "published" in wanted:
        predictions(report, *published(report))
    if "ranks" in wanted:
        weak_scaling(report)
    report.write()


if __name__ == "__main__":
    main()
