"""Contrastive alignment: frozen towers cached against running, and the whole loop beside open_clip's.

    make bench-align
    OPEN_CLIP=<folder with open_clip/ and open_clip_train/> make bench-align

Measured is a whole fit, with the making of the trainer or the loader, in processes that have their turn (`rounds.py`).
"""

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from benchmarks.open_clip_loop import Loop
from benchmarks.report import Report
from benchmarks.rounds import Arm, repeated, rounds
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
Work = Callable[[], Callable[[], float]]
"""What makes a piece of work, which returns how many samples it took."""


def fit(module: TrainModule, loader: Any, steps: int, batch: int) -> float:
    """A fit of so many steps; the samples that it took."""
    pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, **QUIET).fit(module, loader)
    return batch * steps


def pictures(count: int) -> tuple[list[np.ndarray], list[str]]:
    """First frames uint8 ``[h w c]`` of the world's clips, and a caption of each."""
    scenes = [world.scene(0, "train", i) for i in range(count)]
    rng = world.rng_of("bench")
    return [world.render(s, num_frames=1)[0] for s in scenes], [world.caption(s, rng) for s in scenes]


# frozen towers: cached, or running ------------------------------------------------------------------------------------


def frozen(cached: bool) -> Callable[[], float]:
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
    loader: Any = [batch] * steps
    return lambda: fit(module, torch.utils.data.DataLoader(loader, batch_size=None), steps, CACHED_BATCH)


# the whole loop, from shards ------------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """JPEGs of 64² with captions: enough for every step of a round."""
    frames, captions = pictures(BATCH * STEPS)
    with ShardWriter(folder, max_samples=BATCH * STEPS // SHARDS) as writer:
        for i, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
            Image.fromarray(frame).save(out := io.BytesIO(), "JPEG", quality=95)
            writer.write(f"{i:06d}", {"jpg": out.getvalue(), "txt": caption.encode()})


def ours(folder: Path) -> Callable[[], float]:
    """The recipe `pretrain_clip`: everything trains, from JPEGs."""
    keep_pages()
    backbone, adapters = artifact.assemble(config.compose("pretrain_clip"))
    source = Source(shards=str(folder), num_frames=1)
    module = TrainModule(
        backbone=backbone, adapters=adapters, objective=Contrastive(), optim=AdamW(lr=1e-3, weight_decay=0.01),
        seed=0, steps=10**6,
    )  # fmt: skip

    return lambda: fit(module, source.loader(seed=0, batch_size=BATCH, steps=STEPS), STEPS, BATCH)


def theirs(path: Path, folder: Path) -> Callable[[], float]:
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
    return lambda: loop.run(STEPS)


# rounds ---------------------------------------------------------------------------------------------------------------


def quiet(make: Work) -> Arm:
    """An arm of fits that say nothing."""

    def hushed() -> Callable[[], float]:
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        return make()

    return repeated(hushed)


def main() -> None:
    report = Report("align")
    arms = {"towers running": quiet(partial(frozen, False)), "towers cached": quiet(partial(frozen, True))}
    found = rounds(arms, count=ROUNDS)
    report.arms(f"heads on a frozen CLIP, batch {CACHED_BATCH}", found, unit="sample", aims={"towers cached": 5})
    if "OPEN_CLIP" in os.environ:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "shards"
            write(folder)
            theirs_ = quiet(partial(theirs, Path(os.environ["OPEN_CLIP"]), folder))
            found = rounds({"open_clip": theirs_, "mmtrain": quiet(partial(ours, folder))}, count=ROUNDS)
            report.arms(f"a tiny CLIP from JPEGs, batch {BATCH}", found, unit="sample", aims={"mmtrain": 1.3})
    else:
        report.say("beside open_clip: OPEN_CLIP=<folder with open_clip/ and open_clip_train/> make bench-align")
    report.write()


if __name__ == "__main__":
    main()
