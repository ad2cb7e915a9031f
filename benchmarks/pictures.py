"""Models of pictures side by side on the world: what they fulfil, what they cost, and what an open prompt shows.

    python -m benchmarks.pictures --model data/backbones/sd 25 4 --model exports/quick 4 1
    python -m benchmarks.pictures --model data/backbones/sd 12 4 --model exports/fair 12 4 --open "a circle on black"

A model is an artifact or a folder that diffusers opens, its steps and its guidance. Prompts are the held-out scenes of
one object of `mmtrain evaluate`, seeds are the same for all models; shares have 95 % intervals (Wilson's), differences
from the first model a paired test. With ``--open`` every picture is of that one prompt, and what counts is how often each
colour is shown, as the judge reads it from pixels, and how far that is from equal shares.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from mmtrain import artifact
from mmtrain.data import world
from mmtrain.evaluate import cases
from mmtrain.evaluate.intervals import paired, wilson
from mmtrain.evaluate.judge import fulfilment, read
from mmtrain.sample.generate import images

FACTS = ("colour", "background", "count", "shape")


def drawn(model: Sequence[str], prompts: list[str], seeds: list[int], batch: int) -> tuple[np.ndarray, float]:
    """Pictures uint8 ``[n h w c]``, and processor seconds for each."""
    where, steps, guidance = model
    backbone, _ = artifact.opened(where)
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


def shown(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """By colour, which pictures show their largest object in it; ``none`` where it fits no colour of the world."""
    seen = [read(p[None]).objects for p in pictures]
    colours = [objects[0].colour or "none" if objects else "none" for objects in seen]
    return {name: np.array([colour == name for colour in colours]) for name in (*world.COLOURS, "none")}


def apart(found: dict[str, np.ndarray]) -> float:
    """KL(shown ‖ equal shares) in nats over the world's colours, of the pictures that show one."""
    counts = np.array([found[name].sum() for name in world.COLOURS], float)
    shares = counts / counts.sum()
    return float(sum(p * np.log(p * len(shares)) for p in shares if p > 0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures")
    parser.add_argument("--model", nargs=3, action="append", required=True, metavar=("FOLDER", "STEPS", "GUIDANCE"))
    parser.add_argument("--count", type=int, default=48, help="pictures of each")
    parser.add_argument("--open", metavar="PROMPT", help="one prompt that names no colour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1, help="pictures made at once")
    asked = parser.parse_args()
    scenes = cases.heldout(count=asked.count, two_objects=0, seed=asked.seed)
    prompts = [asked.open] * asked.count if asked.open else [case.prompt for case in scenes]
    table, first = Table(), None
    for word in ("model", "steps", "guidance", "CPU s/picture"):
        table.add_column(word)
    for name in (*world.COLOURS, "none", "from equal") if asked.open else FACTS:
        table.add_column(name)
    for model in asked.model:
        pictures, seconds = drawn(model, prompts, [case.seed for case in scenes], asked.batch)
        found = shown(pictures) if asked.open else fulfilled(pictures, scenes)
        cells = [said(values, None if first is None else first[name], asked.seed) for name, values in found.items()]
        if asked.open:
            cells.append(f"{apart(found):.3f}")
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
