"""A run that takes a second: CLIP of a few thousand weights on six pictures of 32 pixels. No test of its own."""

from pathlib import Path

from mmtrain import cli
from mmtrain.data.shards import write_world

TOWER = "{hidden_size:16,intermediate_size:32,num_hidden_layers:1,num_attention_heads:2}"
VISION = "{hidden_size:16,intermediate_size:32,num_hidden_layers:1,num_attention_heads:2,image_size:32,patch_size:16}"
WORDS = [
    *("train", "pretrain_clip", "trainer.threads=1", "trainer.batch_size=4", "backbone.width=8"),
    *("trainer.steps=6", "trainer.checkpoint_every=2", "trainer.log_every=1", "trainer.ema=0.9", "optim.warmup=2"),
    *(f"backbone.text={TOWER}", f"backbone.vision={VISION}"),
]


def world(folder: Path) -> Path:
    return write_world(folder, split="train", count=6, seed=0, shard_size=3)


def words(shards: Path, runs: Path, *more: str) -> list[str]:
    """Of the command line, which trains six steps and saves behind every other."""
    loggers = [] if any(word.startswith("logger=") for word in more) else ["logger=null"]
    return [*WORDS, f"dataset.shards={shards}", f"folder={runs}", *loggers, *more]


def train(shards: Path, runs: Path, *more: str) -> Path:
    """The folder of a run that is done."""
    before = set(runs.glob("*")) if runs.exists() else set()
    assert cli.main(words(shards, runs, *more)) == 0
    [made] = set(runs.glob("*")) - before
    return made
