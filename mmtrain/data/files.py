"""The world as a folder of files, as people have them: PNG pictures and MP4 clips, each with its captions beside it."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from mmtrain.data import brand, world
from mmtrain.data.decode import encode_mp4
from mmtrain.data.shards import WORLD_FPS, refuse_existing
from mmtrain.errors import UserError


def write_files(
    folder: Path,
    *,
    images: int,
    clips: int,
    split: str,
    seed: int,
    captions_each: int = 3,
    two_objects: float = 0.3,
    pace: float = 1.0,
    motions: Mapping[str, float] | None = None,
    branded: bool = False,
    rename: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the first frames of ``images`` scenes and the clips of the next ``clips``; return the folder.

    Args:
        split, seed, captions_each, two_objects, pace, motions, branded, rename: as `shards.write_world` takes them.
        progress: called with (written, all) after each file.

    Raises:
        UserError: clutter, which has no captions; nothing to write; a pace as `world.readable`; an output that exists.
    """
    total = images + clips
    if split == "clutter" or total < 1:
        came = f"{images} pictures and {clips} clips of {split}"
        raise UserError("files", came, "at least one, of train or heldout", "correct it")
    world.readable(pace, two_objects)
    world.shares_of_motions(motions or {})
    refuse_existing(folder)
    drawn = (brand if branded else world).samples
    staging = folder.absolute().with_name(f".{folder.name}.staging-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        scenes = drawn(seed, split, total, captions_each, two_objects, pace=pace, motions=motions)
        for i, (key, frames, captions, _) in enumerate(scenes):
            if i < images:
                Image.fromarray(frames[0]).save(staging / f"{key}.png")
            else:
                (staging / f"{key}.mp4").write_bytes(encode_mp4(frames, WORLD_FPS))
            lines = "".join(f"{line}\n" for line in world.renamed(captions, rename or {}))
            (staging / f"{key}.txt").write_text(lines, encoding="utf-8")
            if progress:
                progress(i + 1, total)
        if folder.is_dir():
            folder.rmdir()
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
