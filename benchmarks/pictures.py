"""Models of pictures side by side on the world: what they fulfil of held-out prompts, and what a picture costs.

    python -m benchmarks.pictures --model data/backbones/sd 25 4 --model exports/quick 4 1

A model is an artifact or a folder that diffusers opens, its steps and its guidance; so that a teacher stands beside its
student. Prompts are the held-out scenes of one object of `mmtrain evaluate`, seeds are the same for all models; shares
have 95 % intervals (Wilson's), differences from the first model a paired test.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from mmtrain.evaluate import cases
from mmtrain.evaluate.intervals import paired, wilson
from mmtrain.evaluate.judge import fulfilment, read
from mmtrain.sample.generate import images
from mmtrain.sample.strength import opened

FACTS = ("colour", "background", "count", "shape")


def drawn(model: Sequence[str], prompts: list[str], seeds: list[int], batch: int) -> tuple[np.ndarray, float]:
    """Pictures uint8 ``[n h w c]``, and processor seconds for each."""
    where, steps, guidance = model
    backbone, _ = opened(where)
    how = {"backbone": backbone, "num_inference_steps": int(steps), "guidance_scale": float(guidance)}
    images(prompts=prompts[:1], seeds=seeds[:1], **how)  # warm
    started, made = time.process_time(), []
    for i in range(0, len(prompts), batch):
        made.append(images(prompts=prompts[i : i + batch], seeds=seeds[i : i + batch], **how))
    return np.concatenate(made), (time.process_time() - started) / len(prompts)


def fulfilled(pictures: np.ndarray, asked: Sequence[cases.Case]) -> dict[str, np.ndarray]:
    """By fact, which pictures fulfil it."""
    readings = [fulfilment(read(p[None]), case.truth or {}) for p, case in zip(pictures, asked, strict=True)]
    return {name: np.array([reading[name] for reading in readings]) for name in FACTS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures")
    parser.add_argument("--model", nargs=3, action="append", required=True, metavar=("FOLDER", "STEPS", "GUIDANCE"))
    parser.add_argument("--count", type=int, default=48, help="pictures of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1, help="pictures made at once")
    asked = parser.parse_args()
    scenes = cases.heldout(count=asked.count, two_objects=0, seed=asked.seed)
    prompts = [case.prompt for case in scenes]
    table, first = Table(), None
    for word in ("model", "steps", "guidance", "CPU s/picture"):
        table.add_column(word)
    for name in FACTS:
        table.add_column(name)
    for model in asked.model:
        pictures, seconds = drawn(model, prompts, [case.seed for case in scenes], asked.batch)
        found = fulfilled(pictures, scenes)
        cells = [said(values, None if first is None else first[name], asked.seed) for name, values in found.items()]
        table.add_row(*model, f"{seconds:.2f}", *cells)
        first = first or found
    Console(width=180).print(table)


def said(values: np.ndarray, base: np.ndarray | None, seed: int) -> str:
    """A share in % with its interval, and the p of its difference from the first model's."""
    share = wilson(values)
    text = f"{100 * share.mean:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    if base is None:
        return text
    return f"{text} p={paired(base.astype(float), values.astype(float), seed=seed).p_value:.2g}"


if __name__ == "__main__":
    main()
