"""What a run on frozen towers computes once, before its first step: text features for the cache, and few-shot memories.

The visual features are `data/cache.py`'s; the loop that uses all of them is any run's.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mmtrain.adapter.tip_adapter import TipAdapter
from mmtrain.backbone.aligned import Aligned
from mmtrain.data.decode import captions_of
from mmtrain.data.source import Source
from mmtrain.data.stream import Stream


def recall_text(backbone: Aligned, source: Source, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Give a backbone the text features of all captions of a source, from a file beside its cached visual features.

    The file is written once for each text tower and set of captions; a tower that trains has nothing to recall.

    Args:
        source: of the cached features, whose shards hold the captions too.
        folder: that cache.
    """
    if not backbone.text_is_frozen:
        return
    captions = sorted({caption for i in range(len(source)) for caption in captions_of(source.raw(i))})
    named = hashlib.blake2b("\x1f".join([backbone.text_id, *captions]).encode(), digest_size=6).hexdigest()
    file = folder / f"text-{named}.safetensors"
    if not file.exists():
        partial = file.with_name(f".{file.name}.{os.getpid()}.part")
        save_file({"features": backbone.table(captions, progress)}, partial)
        os.replace(partial, file)
    backbone.recall(captions, load_file(file)["features"])


@torch.no_grad()
def fill_memories(backbone: Any, adapters: Mapping[str, Any], source: Stream, seed: int) -> None:
    """Give each Tip-Adapter of a fresh run the first ``shots`` samples of the run's own order."""
    for adapter in adapters.values():
        if isinstance(adapter, TipAdapter):
            batch = next(iter(source.loader(seed=seed, batch_size=adapter.shots, steps=1))).to("cpu")
            adapter.remember(backbone.embed_visual(batch), backbone.embed_text(batch.captions))
