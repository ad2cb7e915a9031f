"""`mmtrain sample`: from an artifact or a pipeline folder and some words to files. Frames are made in `generate.py`."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmtrain import artifact
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.data.decode import to_rgb
from mmtrain.data.shards import refuse_existing
from mmtrain.errors import UserError
from mmtrain.sample.generate import VideoSampler, images
from mmtrain.sample.mp4 import contact_sheet, write_mp4, write_png


def sample(
    folder: str,
    *,
    prompts: Sequence[str],
    image: Path | None,
    sd: str | None,
    seed: int,
    fps: int,
    out: Path,
    settings: dict[str, Any],
) -> list[Path]:
    """Write one MP4 a prompt (a PNG, for a model of images) and a contact sheet.

    Args:
        folder: an artifact, or a pipeline folder or hub id of vanilla diffusers.
        prompts: what to show; none with an image is the vanilla image → video.
        image: the first frame.
        sd: the Stable Diffusion that draws first frames where there is a prompt and no image; None: text alone.
        seed: of the first clip; the next ones count on.
        fps: of the files.
        out: a folder that must not hold anything.
        settings: further arguments of `VideoSampler.video`; those that are None are left to it.

    Returns:
        The files.

    Raises:
        UserError: whatever was asked cannot be done; nothing is left half written.
    """
    refuse_existing(out)
    given = {name: value for name, value in settings.items() if value is not None}
    backbone, facts = load(folder)
    count = max(len(prompts), 1)
    seeds = [seed + i for i in range(count)]
    if isinstance(backbone, StableDiffusion):
        if not prompts or image is not None:
            raise UserError(folder, "a model of images", "a prompt alone", "give --prompt")
        if "num_frames" in given:
            raise UserError("--num-frames", str(given["num_frames"]), "a model of video", f"{folder} makes pictures")
        clips = images(backbone=backbone, prompts=prompts, seeds=seeds, **given)[:, None]
    else:
        first = None if image is None else np.stack([open_image(image)] * count)
        drawing = None if sd is None or image is not None or not prompts else StableDiffusion(path=sd)
        sampler = VideoSampler(backbone=backbone, first_frame=drawing)
        way = "none" if drawing is None else "generate"
        clips = sampler.video(prompts=prompts or None, images=first, first_frames=way, seeds=seeds, **given)  # type: ignore[arg-type]
    return write(clips, list(prompts) or [str(image)], seeds, out, fps, facts)


def load(folder: str) -> tuple[Any, dict[str, Any]]:
    """The backbone of an artifact, adapters attached, or of a vanilla pipeline; and what is known of it."""
    path = Path(folder)
    if (path / "artifact.json").is_file():
        backbone, _, facts = artifact.load(path)
        return backbone, {"run_id": facts["run_id"], "artifact": facts["name"]}
    index = path / "model_index.json"
    if path.is_dir() and not index.is_file():
        raise UserError(folder, "neither artifact.json nor model_index.json", "an artifact or a pipeline", "export one")
    kind = json.loads(index.read_text())["_class_name"] if index.is_file() else ""
    if kind == "StableDiffusionPipeline":
        return StableDiffusion(path=folder), {"pipeline": folder}
    return StableVideoDiffusion(path=folder), {"pipeline": folder}


def open_image(path: Path) -> np.ndarray:
    """A picture as uint8 ``[h w c]``, upright, RGB.

    Raises:
        UserError: there is none, or it does not decode.
    """
    if not path.is_file():
        raise UserError(str(path), "no such file", "a picture", "check the path")
    try:
        with Image.open(path) as opened:
            return np.asarray(to_rgb(opened))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UserError(str(path), f"it does not decode ({error})", "a picture", "choose another file") from error


def write(
    clips: np.ndarray, labels: list[str], seeds: list[int], out: Path, fps: int, facts: dict[str, Any]
) -> list[Path]:
    """The files of some clips, all or none."""
    staging = out.absolute().with_name(f".{out.name}.part-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    names = []
    try:
        for i, (clip, label, seed) in enumerate(zip(clips, labels, seeds, strict=True)):
            told = {"comment": json.dumps({"ai_generated": True, "prompt": label, "seed": seed, **facts})}
            name = f"{i:03d}.{'mp4' if len(clip) > 1 else 'png'}"
            if len(clip) > 1:
                write_mp4(clip, staging / name, fps=fps, metadata=told)
            else:
                write_png(clip[0], staging / name, metadata=told)
            names.append(name)
        contact_sheet(list(clips), labels, staging / "sheet.png")
        if out.exists():
            out.rmdir()
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [out / name for name in [*names, "sheet.png"]]
