"""`mmtrain sample`: from an artifact or a pipeline folder and some words to files. Frames are made in `generate.py`."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mmtrain import artifact, config
from mmtrain.backbone import usual
from mmtrain.backbone.prior import Prior
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.text import tokenize
from mmtrain.data.decode import BadSample, Look, decode
from mmtrain.data.index import IMAGES
from mmtrain.data.shards import refuse_existing
from mmtrain.errors import UserError
from mmtrain.sample import onnx, watermark
from mmtrain.sample.chunks import check_overlap, long_video
from mmtrain.sample.files import Files
from mmtrain.sample.generate import Progress, clips, images, starts_from_image, to_bytes
from mmtrain.sample.held import Bits, hold, placed
from mmtrain.sample.mp4 import contact_sheet
from mmtrain.sample.provenance import LABEL
from mmtrain.sample.strength import fold, opened
from mmtrain.sample.video import VideoSampler

_ON_SHEET = 48  # clips on the contact sheet

Maker = Callable[[str | None, int, Progress], np.ndarray]
"""(prompt, seed, progress) → one clip uint8 ``[t h w c]``."""


class Sampled(NamedTuple):
    """The files, the sheet last; how they are marked, in words; bytes of a network that was held in eight bits, before
    and after; the file of a network that ONNX Runtime ran; settings that the model's folder brought."""

    files: list[Path]
    marks: str
    held: tuple[int, int] | None = None
    network: Path | None = None
    usual: Mapping[str, Any] = MappingProxyType({})


def sample(
    where: str,
    *,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    image: Path | None = None,
    first_frame: str | None = None,
    text: str | None = None,
    strength: float = 1.0,
    mix: Mapping[str, float] | None = None,
    bits: Bits = 32,
    prior: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    files: Files | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Sampled:
    """Write one clip a prompt (a PNG, for a model of pictures) and a contact sheet, all or none.

    Each clip is made by itself, so that it is the same, bit for bit, whatever else is asked for, and is written before
    the next is made. Clips longer than the model's are made in chunks (`chunks.py`).

    Args:
        where: an artifact, or a folder or hub id that vanilla diffusers opens.
        prompts: what to show; none with an image is the vanilla image → video.
        prompts_file: more of them, one a line.
        image: the first frame of every clip, cut to the clip's shape.
        first_frame: who draws it where there is none: ``sd`` (the shipped one), ``none`` (text alone), or the folder or
            hub id of a Stable Diffusion. None: ``sd`` for what stands on the shipped backbones, else ``none``.
        text: CLIP whose text tower reads the prompts, for a plain Stable Video Diffusion, which has none.
        strength: of the artifact's adapters; 1 is as trained, 0 is the base.
        mix: further artifacts on the same base, each with its strength.
        bits: in which the network is held (`held.py`); 16 holds for what draws first frames too.
        prior: the prior that makes of each prompt the image embedding that a Stable Video Diffusion sees.
        seed: of the first clip; the next ones count on.
        out: folder to write, new or empty. None: ``samples/<time>-<name>``.
        files: format, rate and marks of the files; None: MP4, marked under the public key.
        settings: further arguments of `VideoSampler.frames` or `images`, and the ``overlap`` of chunks; those that are
            None are left to them.
        progress: told (steps done, steps of all clips).

    Raises:
        UserError: whatever was asked cannot be done; nothing is left half written.
    """
    if out is not None:
        refuse_existing(out)
    how = files or Files()
    if how.provenance.signer is not None:
        how.provenance.signer.check()
    asked = [*prompts, *([] if prompts_file is None else read_prompts(prompts_file))]
    picture = None if image is None else open_image(image)
    if not asked and picture is None:
        raise UserError("sample", "neither prompt nor image", "one of them, or both", "add --prompt or --image")
    if picture is not None and first_frame not in (None, "none"):
        raise UserError("--first-frame", f"{first_frame} and an image", "one of the two", "leave one out")
    if text is not None and (Path(where) / artifact.FACTS).is_file():
        raise UserError("--text", text, f"nothing: {where} names its own text tower", "leave it out")
    backbone, facts = opened(where, text=text, strength=strength, mix=mix)
    own = usual.of(backbone) if hasattr(backbone, "makes") else {}
    given = own | {name: value for name, value in (settings or {}).items() if value is not None}
    identity = str(facts["run_id"] or backbone.base["digest"])
    network = onnx.found(where)
    if network is not None:
        for option, came in {"--strength": strength != 1, "--mix": bool(mix), "--bits": bits < 32}.items():
            if came:
                fix = "leave it out, or export with --format merged"
                raise UserError(option, f"{where}, whose network is in ONNX", "a network that torch runs", fix)
        onnx.use(backbone, network)
    held = hold(backbone, bits) if bits < 32 else None
    on_place = backbone if network is not None else placed(backbone)
    make = _maker(where, on_place, asked, given, picture, first_frame, prior, bits)
    target = out if out is not None else Path("samples") / f"{datetime.now():%Y%m%d-%H%M%S}-{_slug(facts['name'])}"
    wanted: list[str | None] = [*asked] or [None]
    told = _counted(progress, len(wanted))
    order = [(prompt, prompt or str(image), seed + i) for i, prompt in enumerate(wanted)]
    made = ((label, number, make(prompt, number, told(i))) for i, (prompt, label, number) in enumerate(order))
    written = _write(made, target, how, identity, facts, given if held is None else {**given, "bits": bits})
    brought = {name: value for name, value in own.items() if given[name] == value}
    return written._replace(held=held, network=network, usual=brought)


def _counted(progress: Progress | None, clips: int) -> Callable[[int], Progress]:
    """For each clip's number, what counts its steps among those of all."""

    def of(number: int) -> Progress:
        def told(step: int, steps: int) -> None:
            if progress is not None:
                progress(number * steps + step, clips * steps)

        return told

    return of


def _maker(
    where: str,
    backbone: Any,
    prompts: Sequence[str],
    given: dict[str, Any],
    picture: np.ndarray | None,
    first_frame: str | None,
    prior: str | None,
    bits: Bits,
) -> Maker:
    """What makes a clip, by what the backbone is."""
    unclip = None if prior is None else opened_prior(prior, backbone)
    if isinstance(backbone, Prior):
        fix = f"name a Stable Video Diffusion, and this one with --prior {where}"
        raise UserError(where, "a prior, which makes embeddings", "a model of pictures or video", fix)
    if not hasattr(backbone, "makes"):
        raise UserError(where, f"a {type(backbone).__name__}", "a model of pictures or video", "name another")
    if isinstance(backbone, StableVideoDiffusion):
        return _videos(where, backbone, prompts, given, picture, first_frame, unclip, bits)
    return _of_text(where, backbone, prompts, given, picture, first_frame, bits)


def _of_text(
    where: str,
    backbone: Any,
    prompts: Sequence[str],
    given: dict[str, Any],
    picture: np.ndarray | None,
    first_frame: str | None,
    bits: Bits,
) -> Maker:
    """Pictures or clips by a model that reads text; clips also by one that is told their first frame too."""
    given = dict(given)
    scale = given.pop("first_frame_guidance", None)
    still, starts = backbone.makes == "image", starts_from_image(backbone)
    alien = {"--image": picture is not None, "--first-frame": first_frame not in (None, "none")}
    alien["--first-frame-guidance"] = scale is not None
    alien = {} if starts else alien
    strange = ["overlap", "decode_chunk_size", "guidance_above", *(["num_frames"] if still else [])]
    alien |= {f"--{name.replace('_', '-')}": name in given for name in strange}
    wanted = "a model of video" if still else "a model that starts from a picture"
    kind = "pictures" if still else "one clip at a time" if starts else "text alone"
    for option in (name for name, came in alien.items() if came):
        raise UserError(option, f"{where}, a model of {kind}", wanted, "leave it out")
    if not prompts and not starts:
        raise UserError(where, "no prompt", "what to show", "add --prompt")
    backbone.check_prompts(prompts)  # the last prompt's fault is said before the first picture
    height, width = (given.get(name, own) for name, own in zip(("height", "width"), backbone.size, strict=True))
    begin = _first_frames(where, height, width, picture, first_frame, bits, scale) if starts else None

    def make(prompt: str | None, seed: int, told: Progress) -> np.ndarray:
        how: dict[str, Any] = {"prompts": [prompt or ""], "seeds": [seed], "progress": told, **given}
        if begin is not None:
            how["images"] = begin(prompt or "", seed)
        return images(backbone=backbone, **how) if still else clips(backbone=backbone, **how)[0]

    return make


def _first_frames(
    where: str,
    height: int,
    width: int,
    picture: np.ndarray | None,
    first_frame: str | None,
    bits: Bits,
    scale: float | None,
) -> Callable[[str, int], np.ndarray]:
    """What gives the first frame ``[1 h w c]`` of a prompt and a seed: a picture, or a Stable Diffusion that draws, by
    a guidance ``scale``."""
    if scale is not None and first_frame in (None, "none"):
        raise _unguided(scale)
    if picture is not None:
        fitted = _fitted(picture, height, width)
        return lambda prompt, seed: fitted
    if first_frame in (None, "none"):
        fix = "add --image, or have it drawn with --first-frame"
        raise UserError(where, "no first frame", "one, for this model starts from an image", fix)
    how: dict[str, Any] = {"backbone": _painter(str(first_frame), bits), "height": height, "width": width}
    if scale is not None:
        how["guidance_scale"] = scale
    return lambda prompt, seed: images(prompts=[prompt], seeds=[seed], **how)


def _unguided(scale: float) -> UserError:
    return UserError("--first-frame-guidance", f"{scale:g}, and no first frame to draw", "--first-frame", "add it")


def _fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture cut to a clip's shape and brought to its size, ``[1 h w c]``."""
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.BICUBIC))[None]


def _videos(
    where: str,
    backbone: StableVideoDiffusion,
    prompts: Sequence[str],
    given: dict[str, Any],
    picture: np.ndarray | None,
    first_frame: str | None,
    prior: Prior | None,
    bits: Bits,
) -> Maker:
    drawing = _drawing(backbone, first_frame, bits) if prompts and picture is None else None
    if drawing is None and "first_frame_guidance" in given:
        raise _unguided(given["first_frame_guidance"])
    sampler = VideoSampler(backbone=backbone, first_frame=drawing, prior=prior)
    if prompts and backbone.text is None and drawing is None and prior is None:
        fix = "name a CLIP with --text, or have the prompt drawn with --first-frame"
        raise UserError(where, "a prompt, and no text tower to read it", "a text tower", fix)
    for tokenizer in (backbone.text and backbone.text.tokenizer, drawing and drawing.tokenizer):
        if tokenizer and prompts:
            tokenize(tokenizer, prompts, "cpu")  # the last prompt's fault is said before the first clip
    how: dict[str, Any] = {"first_frames": "none" if drawing is None else "generate"}
    reads = backbone.text is not None or prior is not None
    if backbone.bridge is None and (Path(where) / artifact.FACTS).is_file() and (picture is not None or drawing):
        reads = prior is not None  # its adapters were trained on the first frame's token
    how["tokens"] = "text" if reads else "image"
    if picture is not None:
        how["images"] = _fitted(picture, given.get("height", sampler.side), given.get("width", sampler.side))

    length = int(sampler.pipeline.unet.config.num_frames)
    long = given.get("num_frames", length) > length
    if "overlap" in given and not long:
        wanted = f"more than the model's {length} frames"
        raise UserError("--overlap", "a clip of one chunk", wanted, "leave it out, or ask for more with --num-frames")
    if long:
        check_overlap(given.get("overlap", 1), length)
    make_one = partial(long_video, sampler) if long else sampler.frames

    def make(prompt: str | None, seed: int, told: Progress) -> np.ndarray:
        words = None if prompt is None else [prompt]
        return to_bytes(make_one(prompts=words, seeds=[seed], progress=told, **how, **given)[0])

    return make


def opened_prior(where: str, backbone: Any) -> Prior:
    """The prior at a folder or hub id, checked against the model that is to read its embeddings.

    Raises:
        UserError: no prior there, or one whose embeddings this model was not made for.
    """
    prior, _ = artifact.opened(where)
    if not isinstance(prior, Prior):
        raise UserError("--prior", f"{where}, a {type(prior).__name__}", "a prior", "name another folder")
    made = int(prior.prior.config.embedding_dim)
    if not isinstance(backbone, StableVideoDiffusion) or backbone.conditioning_width != made:
        read = getattr(backbone, "conditioning_width", "none")
        wanted = "a Stable Video Diffusion that reads embeddings of that width"
        raise UserError(
            "--prior", f"embeddings of width {made} for a model that reads {read}", wanted, "choose another"
        )
    fold(prior)
    return placed(prior)


def _drawing(backbone: StableVideoDiffusion, first_frame: str | None, bits: Bits) -> StableDiffusion | None:
    if first_frame is None:
        at_home = artifact.portable({"path": backbone.path})["path"].startswith("${shipped:")
        first_frame = "sd" if at_home else "none"
    if first_frame == "none":
        return None
    return _painter(first_frame, bits)


def _painter(first_frame: str, bits: Bits) -> StableDiffusion:
    drawing = StableDiffusion(path=config.shipped("sd") if first_frame == "sd" else first_frame)
    if bits == 16:
        hold(drawing, bits)
    return placed(drawing)


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are none.

    Raises:
        UserError: no such file, no text, or no prompt in it.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(str(file), "no such file", "prompts, one a line", "check the path") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(str(file), "not a text file", "prompts, one a line, in UTF-8", "choose another") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(str(file), "an empty file", "prompts, one a line", "write some")
    return prompts


def open_image(path: Path) -> np.ndarray:
    """A picture as uint8 ``[h w c]``, upright, RGB.

    Raises:
        UserError: there is none, or it does not decode.
    """
    if not path.is_file():
        raise UserError(str(path), "no such file", "a picture", "check the path")
    suffix = path.suffix[1:].lower()
    members = {suffix if suffix in IMAGES else "png": path.read_bytes()}
    try:
        return decode(path.name, members, Look(num_frames=1), draw=0.0).frames[0]
    except BadSample as error:
        raise UserError(str(path), str(error), "a JPEG, PNG or WebP", "choose another file") from error


def _write(
    clips: Iterator[tuple[str, int, np.ndarray]],
    out: Path,
    how: Files,
    identity: str,
    facts: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Sampled:
    """Write clips, each with its label and seed, as they come."""
    refuse_existing(out)
    first = next(clips)  # what is wrong with sizes is said before a folder is made
    staging = out.absolute().with_name(f".{out.name}.part-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tags = {"artifact": facts.get("strengths", facts["name"]), "run_id": facts["run_id"] or "none"}
    tags["settings"] = json.dumps(dict(given))
    written: list[Path] = []
    shown: list[tuple[np.ndarray, str]] = []
    smallest = watermark.TILE
    try:
        for i, (label, seed, clip) in enumerate(chain([first], clips)):
            stem = staging / f"{i:03d}-{_slug(label)}"
            written += how.write(clip, stem, identity=identity, title=label, tags={**tags, "seed": str(seed)})
            smallest = min(smallest, *clip.shape[1:3])
            if i < _ON_SHEET:
                shown.append((clip, f"{label} · seed {seed}"))
        title = f"{tags['artifact']} · run {facts['run_id'][:8]}" if facts["run_id"] else tags["artifact"]
        pictures, labels = zip(*shown, strict=True)
        written.append(contact_sheet(pictures, labels, staging / "sheet.png", title=title, metadata={"comment": LABEL}))
        if out.exists():
            out.rmdir()
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Sampled([out / path.relative_to(staging) for path in written], how.provenance.said(smallest, identity))


def _slug(text: str) -> str:
    """A short file name of some words."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(text).stem.lower() if "/" in text else text.lower()).strip("-")
    return words[:48].rstrip("-") or "clip"
