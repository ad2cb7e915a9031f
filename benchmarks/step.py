"""What a LoRA step on the shipped Stable Diffusion costs: a bare loop of the same maths, mmtrain, and another's script.

    make bench-step [PEER=<folder of diffusers>/examples/text_to_image/train_text_to_image_lora.py]

Prints seconds a step (min – median – max over alternating rounds) and the ratio of medians to the bare loop on cached
latents. All train the same weights of the same network on the same pictures with the same optimizer; none logs, saves
or decodes a file. The peer runs as it is, in a process of its own, and its seconds are those of its steps alone: the
time of a long run less that of a short one.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from mmtrain import artifact, config
from mmtrain.batch import Batch, to_unit
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source
from mmtrain.threads import keep_pages
from mmtrain.train.module import TrainModule

ROUNDS, STEPS, SIZE = 5, 6, 8
PEER_STEPS = (2, 10)

Loop = Callable[[TrainModule, list[Batch]], None]


def bare(module: TrainModule, data: list[Batch]) -> None:
    optimizer = module.configure_optimizers()
    for batch in data:
        module.loss(batch).per_sample.mean().backward()
        torch.nn.utils.clip_grad_norm_(list(module.weights.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def lightning(module: TrainModule, data: list[Batch]) -> None:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(max_steps=len(data), accelerator="cpu", devices=1, enable_model_summary=False, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))  # type: ignore[arg-type]


def pictures(room: Path) -> tuple[list[Batch], Path]:
    """Batches of the world's first frames, and a folder of the same pictures for the peer."""
    source = Source(shards=str(write_world(room / "shards", count=SIZE * STEPS, seed=0)), num_frames=1)
    folder = room / "pictures"
    folder.mkdir()
    samples, rows = [source.sample(i) for i in range(SIZE * STEPS)], ["file_name,text"]
    from PIL import Image

    for i, sample in enumerate(samples):
        Image.fromarray(sample.frames[0]).save(folder / f"{i:04d}.png")
        rows.append(f'{i:04d}.png,"{sample.captions[0]}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    batches = []
    for first in range(0, len(samples), SIZE):
        some = samples[first : first + SIZE]
        frames = torch.stack([to_unit(s.frames.copy()) for s in some])
        places = list(range(first, first + SIZE))
        batches.append(Batch([s.key for s in some], places, [s.captions[0] for s in some], frames))
    return batches, folder


def peer(script: Path, folder: Path, steps: int) -> float:
    """Seconds that the peer's script takes for some steps, from its start to its end."""
    words = [sys.executable, str(script), "--pretrained_model_name_or_path", config.shipped("sd")]
    words += ["--train_data_dir", str(folder), "--resolution", "64", "--train_batch_size", str(SIZE)]
    words += ["--max_train_steps", str(steps), "--rank", "8", "--lr_scheduler", "constant", "--seed", "0"]
    words += ["--output_dir", str(folder.parent / "peer"), "--report_to", "tensorboard"]
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peer's script did not run: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def table(seconds: dict[str, list[float]]) -> Table:
    shown = Table("loop", "s/step min – median – max", "ratio", title=f"LoRA step on Stable Diffusion, batch {SIZE}")
    base = statistics.median(seconds["bare loop, cached"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        shown.add_row(name, f"{min(times):.3f} – {middle:.3f} – {max(times):.3f}", f"{middle / base:.3f}")
    return shown


def main(script: Path | None) -> None:
    keep_pages()
    torch.set_num_threads(1)
    cfg = config.compose("sd_lora", ["dataset.shards=nowhere"])
    backbone, adapters = artifact.assemble(cfg)
    how: dict[str, Any] = {"objective": config.build(cfg.objective), "optim": config.build(cfg.optim), "seed": 0}
    module = TrainModule(backbone=backbone, adapters=adapters, steps=10**6, **how)
    with tempfile.TemporaryDirectory() as room:
        pixels, folder = pictures(Path(room))
        cached = [Batch(b.keys, b.positions, b.captions, None, backbone.encode(b.frames)) for b in pixels]
        loops: dict[str, tuple[Loop, list[Batch]]] = {
            "bare loop, cached": (bare, cached),
            "mmtrain, cached": (lightning, cached),
            "mmtrain, from pixels": (lightning, pixels),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for loop, data in loops.values():
            loop(module, data[:2])  # warm
        for _ in range(ROUNDS):
            for name, (loop, data) in loops.items():
                start = time.perf_counter()
                loop(module, data)
                seconds[name].append((time.perf_counter() - start) / len(data))
            if script is not None:
                short, long = (peer(script, folder, steps) for steps in PEER_STEPS)
                seconds.setdefault(script.name, []).append((long - short) / (PEER_STEPS[1] - PEER_STEPS[0]))
    Console().print(table(seconds))
    if script is None:
        Console().print("no peer: give its script with PEER=<path> (it needs accelerate, datasets and torchvision)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="diffusers' train_text_to_image_lora.py")
    main(parser.parse_args().peer)
