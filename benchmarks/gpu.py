"""Training steps of real architectures on one GPU: mmtrain beside the loop that diffusers' scripts are.

    make bench-gpu                                       # here, tiny, on the processor: shows that the script runs
    python -m benchmarks.gpu --device cuda               # ten minutes; benchmarks/results/<gpu>-<date>.json
    python -m benchmarks.gpu --device cuda --part sdxl   # one part again

Weights are random: speed does not depend on them, and nothing is fetched. The loop is the same maths in plain PyTorch
as those scripts have it: frozen weights and LoRA on a stock network in bf16 autocast, the plain AdamW, the loss
fetched at every step. mmtrain's step is lightened, its AdamW fused, and nothing waits for the device; compiled is
that with each kind of block compiled once. Utilisation is the stock network's operations (counted on the meta device,
nothing counted twice for what is computed again) over the time and 790 TFLOP/s, which an H100 or H200 reaches in
dense bf16 products. What is measured stays in the file; a part that is there is not measured again unless it is
named.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts import PARTS, TINY, Part, Work
from benchmarks.report import Report, machine
from mmtrain.train.lighten import lighten
from mmtrain.train.measure import measured
from mmtrain.train.schedule import Fit

PEAK = 790e12
WARM, SECONDS = 3, 6.0


@dataclass
class Found:
    """Of one way to do a part's step."""

    seconds: float
    steps_per_s: float
    samples_per_s: float
    peak_gb: float | None
    utilisation: float | None


def loop(part: Part, work: Work) -> Callable[[], object]:
    """As diffusers' scripts do it."""
    if part.checkpointing:
        work.network.enable_gradient_checkpointing()
    weights = [w for w in work.network.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def step() -> float:
        loss = work.plain_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def ours(part: Part, work: Work, compiled: bool) -> Callable[[], object]:
    lighten(work, Fit(steps=1, batch_size=1, checkpointing=part.checkpointing))
    if compiled:
        network: Any = work.network
        if getattr(network, "_repeated_blocks", None):
            network.compile_repeated_blocks()
        else:
            network.compile()
    weights = [w for w in work.network.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def step() -> None:
        work.loss().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], object], part: Part, device: str, flops: int, seconds: float) -> Found:
    on_gpu = device == "cuda"
    for _ in range(WARM if on_gpu else 1):
        step()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or count < 2:
        step()
        count += 1
        if on_gpu:
            torch.cuda.synchronize()
    each = (time.perf_counter() - start) / count
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    return Found(each, 1 / each, part.batch / each, peak, flops / each / PEAK if on_gpu else None)


def measure(part: Part, device: str, seconds: float, compiled: bool) -> dict[str, Any]:
    """All ways of a part; one that the device has no memory for is said to have none."""
    outline = part.build("meta")
    outline.network.to(torch.bfloat16)
    flops = measured(lambda: outline.plain_loss().backward(), outline=True).flops
    ways: dict[str, Callable[[Work], Callable[[], object]]] = {
        "loop": lambda work: loop(part, work),
        "mmtrain": lambda work: ours(part, work, False),
    }
    if compiled:
        ways["mmtrain, compiled"] = lambda work: ours(part, work, True)
    found: dict[str, Any] = {"batch": part.batch, "flops": flops, "checkpointing": part.checkpointing}
    for name, way in ways.items():
        try:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                found[name] = asdict(timed(way(part.build(device)), part, device, flops, seconds))
        except torch.OutOfMemoryError:
            found[name] = None
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.compiler.reset()
    return found


def told(report: Report, parts: dict[str, Any]) -> None:
    rows = []
    for name, found in parts.items():
        for way in ("loop", "mmtrain", "mmtrain, compiled"):
            if way not in found:
                continue
            one, base = found[way], found["loop"]
            ratio = f"{base['seconds'] / one['seconds']:.2f}" if one and base else ""
            row = {"part": name, "batch": found["batch"], "how": way, "s/step": "out of memory", "samples/s": ""}
            row |= {"GB": "", "utilisation": "", "× the loop": ratio}
            if one:
                row |= {"s/step": one["seconds"], "samples/s": one["samples_per_s"], "GB": one["peak_gb"] or ""}
                row["utilisation"] = f"{one['utilisation']:.0%}" if one["utilisation"] else ""
            rows.append(row)
    report.table("training steps, LoRA on frozen networks with random weights", rows)


def main() -> None:
    given = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    given.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given.add_argument("--tiny", action="store_true", help="the shipped tiny networks")
    given.add_argument("--part", action="append", help="this part alone, again; may be repeated")
    given.add_argument("--minutes", type=float, default=9.5, help="no part is begun after these (default: 9.5)")
    given.add_argument("--out", type=Path, help="the file; a part that is in it is not measured again")
    args = given.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        given.error("no GPU is at hand: --device cpu --tiny shows that this runs")
    parts = TINY if args.tiny else PARTS
    for name in args.part or ():
        if name not in parts:
            given.error(f"--part {name}: one of {', '.join(parts)}")
    where = torch.cuda.get_device_name().split()[-1].lower() if args.device == "cuda" else "cpu-tiny"
    out = args.out or Path("benchmarks/results" if args.device == "cuda" else "runs/bench") / (
        f"{where}-{datetime.now(UTC):%Y%m%d}.json"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(out.read_text())["parts"] if out.is_file() else {}
    start, report = time.monotonic(), Report("gpu")
    for name, part in parts.items():
        if name not in (args.part or parts) or (name in kept and not args.part):
            continue
        if time.monotonic() - start > 60 * args.minutes:
            report.say(f"{name}: not begun, the time is over; the same command goes on from here")
            continue
        kept[name] = measure(part, args.device, SECONDS if args.device == "cuda" else 0.2, args.device == "cuda")
        out.write_text(json.dumps({**machine(), "parts": kept}, indent=1) + "\n")
        report.say(f"{name}: {time.monotonic() - start:.0f} s")
    told(report, kept)
    report.say(f"written: {out}")


if __name__ == "__main__":
    main()
