"""Contrastive alignment: frozen towers cached against running, and the whole loop beside open_clip's.

    make bench-align
    OPEN_CLIP=<folder with open_clip/ and open_clip_train/> make bench-align

Prints samples/s (min – median – max over alternate rounds), the ratio of the medians and the aim. Each arm is a process
of its own, forked before any work, so that what one asks of the allocator does not help the other; one thread each.
Measured is a whole fit, with the making of the trainer or the loader.
"""

import io
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.open_clip_loop import Loop
from mmtrain import artifact, config
from mmtrain.adapter.projection import Projection
from mmtrain.adapter.temperature import Temperature
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.text import tokenize
from mmtrain.batch import Batch
from mmtrain.data import world
from mmtrain.data.shards import ShardWriter
from mmtrain.data.source import Source
from mmtrain.objective.contrastive import Contrastive
from mmtrain.threads import keep_pages
from mmtrain.train.module import TrainModule
from mmtrain.train.optim import AdamW

ROUNDS = 3
CACHED_BATCH, CACHED_STEPS, RUNNING_STEPS = 256, 20, 1
BATCH, STEPS, SHARDS = 64, 4, 4
QUIET: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)
Timed = Callable[[], float]


def fit(module: TrainModule, loader: Any, steps: int) -> float:
    """Seconds of a fit of so many steps."""
    start = time.perf_counter()
    pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, **QUIET).fit(module, loader)
    return time.perf_counter() - start


def pictures(count: int) -> tuple[list[np.ndarray], list[str]]:
    """First frames uint8 ``[h w c]`` of the world's clips, and a caption of each."""
    scenes = [world.scene(0, "train", i) for i in range(count)]
    rng = world.rng_of("bench")
    return [world.render(s, num_frames=1)[0] for s in scenes], [world.caption(s, rng) for s in scenes]


# frozen towers: cached, or running ------------------------------------------------------------------------------------


def frozen(cached: bool) -> Timed:
    """Heads and temperature on the shipped CLIP, both towers frozen."""
    keep_pages()
    model = CLIP(path=config.shipped("clip"))
    adapters = {"head": Projection(), "temperature": Temperature()}
    for adapter in adapters.values():
        adapter.attach(model)
    frames, captions = pictures(CACHED_BATCH)
    names, pixels = [str(i) for i in range(CACHED_BATCH)], torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    batch = Batch(names, list(range(CACHED_BATCH)), captions, (pixels.float() / 127.5 - 1)[:, None])
    if cached:
        batch.encoded, batch.frames = model.encode(batch.frames), None
        words = sorted(set(captions))
        model.recall(words, model.table(words, lambda done, total: None))
    steps = CACHED_STEPS if cached else RUNNING_STEPS
    module = TrainModule(
        backbone=model, adapters=adapters, objective=Contrastive(), optim=AdamW(lr=1e-3), seed=0, steps=10**6
    )
    return lambda: (
        CACHED_BATCH * steps / fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None), steps)
    )  # type: ignore[arg-type]


# the whole loop, from shards ------------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """JPEGs of 64² with captions: enough for every step of a round."""
    frames, captions = pictures(BATCH * STEPS)
    with ShardWriter(folder, max_samples=BATCH * STEPS // SHARDS) as writer:
        for i, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
            Image.fromarray(frame).save(out := io.BytesIO(), "JPEG", quality=95)
            writer.write(f"{i:06d}", {"jpg": out.getvalue(), "txt": caption.encode()})


def ours(folder: Path) -> Timed:
    """The recipe `pretrain_clip`: everything trains, from JPEGs."""
    keep_pages()
    backbone, adapters = artifact.assemble(config.compose("pretrain_clip"))
    source = Source(shards=str(folder), num_frames=1)
    module = TrainModule(
        backbone=backbone, adapters=adapters, objective=Contrastive(), optim=AdamW(lr=1e-3, weight_decay=0.01),
        seed=0, steps=10**6,
    )  # fmt: skip

    def rate() -> float:
        return BATCH * STEPS / fit(module, source.loader(seed=0, batch_size=BATCH, steps=STEPS), STEPS)

    return rate


def theirs(path: Path, folder: Path) -> Timed:
    """open_clip's model of the same sizes in open_clip's loop."""
    backbone, _ = artifact.assemble(config.compose("pretrain_clip"))
    text, vision = backbone.model.config.text_config, backbone.model.config.vision_config
    towers = {
        "embed_dim": backbone.model.config.projection_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
        },
        "text_cfg": {
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
        },
    }
    shards = str(folder / f"{{000000..{SHARDS - 1:06d}}}.tar")
    loop = Loop(path, shards, towers, lambda caption: tokenize(backbone.tokenizer, [caption], "cpu")[0], BATCH)
    mine, other = (sum(w.numel() for w in m.parameters()) for m in (backbone.model, loop.model))
    assert abs(mine - other) < 0.02 * mine, f"{mine:,} weights here, {other:,} there"
    return lambda: BATCH * STEPS / loop.seconds(STEPS)


# rounds ---------------------------------------------------------------------------------------------------------------


def arm(pipe: Any, make: Callable[[], Timed]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rate = make()
    rate()  # warm
    while pipe.recv():
        pipe.send(rate())


def rounds(arms: dict[str, Callable[[], Timed]]) -> dict[str, list[float]]:
    """Samples/s of each arm, in alternate rounds."""
    context, pipes, children = multiprocessing.get_context("fork"), {}, []
    for name, make in arms.items():
        pipes[name], end = context.Pipe()
        children.append(context.Process(target=arm, args=(end, make), daemon=True))
        children[-1].start()
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(ROUNDS + 1):
        for name, pipe in pipes.items():
            pipe.send(turn < ROUNDS)
            if turn < ROUNDS:
                found[name].append(pipe.recv())
    for child in children:
        child.join()
    return found


def show(title: str, arms: dict[str, Callable[[], Timed]], aim: float) -> None:
    found = rounds(arms)
    table = Table("arm", "samples/s", "ratio", "aim", title=f"{title}, one thread each")
    base = statistics.median(next(iter(found.values())))
    for name, rates in found.items():
        middle = statistics.median(rates)
        shown = f"{min(rates):,.1f} – {middle:,.1f} – {max(rates):,.1f}"
        table.add_row(name, shown, f"{middle / base:.2f}", f"{aim:g}" if len(table.rows) else "")
    Console(width=110).print(table)


def main() -> None:
    frozen_arms = {"towers running": partial(frozen, False), "towers cached": partial(frozen, True)}
    show(f"heads on a frozen CLIP, batch {CACHED_BATCH}", frozen_arms, 5)
    if "OPEN_CLIP" not in os.environ:
        print("beside open_clip: OPEN_CLIP=<folder with open_clip/ and open_clip_train/> make bench-align")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        write(folder)
        peers = {"open_clip": partial(theirs, Path(os.environ["OPEN_CLIP"]), folder), "mmtrain": partial(ours, folder)}
        show(f"a tiny CLIP from JPEGs, batch {BATCH}", peers, 1.3)


if __name__ == "__main__":
    main()
