"""The proof of an export: the libraries that will use it open what was written, and give what the trained model gives.

Two comparisons for every folder: each weight, bit for bit, and what comes out of two steps at a fixed seed. Writes
nothing into the export; the other side of the proof, in a process without mmtrain, is `vanilla.py`.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtrain import artifact
from mmtrain.adapter.injected import merged
from mmtrain.backbone.aligned import Aligned
from mmtrain.backbone.clip import CLIP, pixels_of, prepare
from mmtrain.backbone.codec import Codec, KLCodec
from mmtrain.backbone.pair import Pair
from mmtrain.backbone.prior import Prior
from mmtrain.backbone.siglip import SigLIP
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.vq import VQCodec
from mmtrain.backbone.wan_codec import WanCodec, step_of
from mmtrain.backbone.weights import copy_as, digest
from mmtrain.errors import UserError
from mmtrain.sample.generate import clips, evaluating, folded, images, starts_from_image
from mmtrain.sample.video import VideoSampler

SCRIPT = Path(__file__).with_name("vanilla.py")
SEED, STEPS, FRAMES, SIDE = 0, 2, 2, 64
PROMPT = "a"
LEVELS = {torch.float32: 1.0, torch.float16: 16.0}
"""How far apart pixels may be, of 255: none usually are in float32; rounding weights to float16 moves some."""


@dataclass
class Case:
    """What the vanilla library is asked, and what the trained model answers.

    Attributes:
        ask: for `vanilla.py`: ``kind`` and its arguments.
        given: its input.
        wanted: its output, computed here.
        parts: the modules it opens, as they should have been written.
        unit: what one level of 255 is in the output.
    """

    ask: dict[str, Any]
    wanted: np.ndarray
    parts: dict[str, nn.Module]
    given: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    unit: float = 1.0


@dataclass(frozen=True)
class Proof:
    """How far a proved export is from the model that was trained, in levels of 255: the mean and the largest."""

    mean: float
    most: float


def prove(backbone: Any, folder: Path, dtype: torch.dtype) -> Proof:
    """Open an exported folder in a clean process, and compare it with the trained model.

    Args:
        backbone: the trained model, adapters attached.
        folder: what `backbone.save` wrote.
        dtype: of the weights in the folder.

    Raises:
        UserError: it does not open, a weight differs, or what comes out does.
    """
    ask = case_of(backbone)
    assert ask is not None
    case = ask(backbone)
    got, digests = ask_vanilla(case, folder)
    wrong = [name for name, part in case.parts.items() if digest(copy_as(part, dtype)) != digests.get(name)]
    if wrong:
        raise refused(folder, f"weights of {', '.join(wrong)} are not those that were trained")
    if got.shape != case.wanted.shape:
        raise refused(folder, f"it gives {got.shape} where {case.wanted.shape} was trained")
    apart = np.abs(got.astype(np.float64) - case.wanted.astype(np.float64)) / case.unit
    proof = Proof(mean=float(apart.mean()), most=float(apart.max()))
    if not proof.most <= LEVELS[dtype]:  # so that NaN is refused too
        raise refused(folder, f"what it gives is {proof.most:.3g} levels of 255 away from the trained model")
    return proof


def prove_artifact(backbone: Any, folder: Path) -> None:
    """Load the artifact as `mmtrain sample` does, and compare what it gives with the trained model, bit for bit.

    Raises:
        UserError: it does not load, or gives something else.
    """
    reloaded, _, _ = artifact.load(folder)
    if not np.array_equal(_answer(backbone), _answer(reloaded)):
        raise refused(folder, "the artifact, loaded again, gives something else than the trained model")


def prove_peft(backbone: CLIP | SigLIP, folder: Path) -> None:
    """Put ``folder/peft`` on the base in a clean process, by peft, and compare what it gives with the trained model.

    Raises:
        UserError: it does not load, or gives something else.
    """
    case = CASES[type(backbone)](backbone)
    base = Path(backbone.path).resolve() if Path(backbone.path).is_dir() else backbone.path
    case.ask |= {"kind": "peft", "base": str(base), "class": type(backbone.model).__name__}
    got, _ = ask_vanilla(case, folder)
    apart = float(np.abs(got - case.wanted).max()) / case.unit if got.shape == case.wanted.shape else math.inf
    if not apart <= LEVELS[torch.float32]:
        raise refused(folder, f"its PEFT adapter gives something {apart:.3g} levels of 255 away from what was trained")


def _answer(backbone: Any) -> np.ndarray:
    if isinstance(backbone, StableVideoDiffusion) and backbone.text is not None:
        sampler = VideoSampler(backbone=backbone)
        return sampler.video(prompts=[PROMPT], **_small(sampler.multiple), num_frames=FRAMES, seeds=[SEED])
    if isinstance(backbone, Aligned):
        with torch.no_grad(), evaluating(backbone):
            clip = _pixels(backbone.num_frames or FRAMES)[None]
            return torch.cat([backbone.embed_text([PROMPT]), backbone.embed_videos(clip)]).numpy()
    ask = case_of(backbone)
    assert ask is not None
    return ask(backbone).wanted


def _small(multiple: int) -> dict[str, Any]:
    side = max(SIDE // multiple, 1) * multiple
    return {"height": side, "width": side, "num_inference_steps": STEPS}


def _picture(side: int) -> np.ndarray:
    """A picture with every kind of edge, uint8 ``[h w c]``, the same on every machine."""
    y, x = np.mgrid[0:side, 0:side]
    return np.stack([x * 255 // side, y * 255 // side, (x // 8 + y // 8) % 2 * 255], -1).astype(np.uint8)


# what each family is asked --------------------------------------------------------------------------------------------


def _video(backbone: StableVideoDiffusion) -> Case:
    sampler = VideoSampler(backbone=backbone)
    call = {**_small(sampler.multiple), "num_frames": FRAMES}
    given = _picture(call["height"])
    wanted = sampler.video(images=given[None], **call, seeds=[SEED])[0]
    parts = {"unet": sampler.pipeline.unet, "vae": backbone.vae, "image_encoder": backbone.image_encoder}
    return Case({"kind": "video", "call": call}, wanted, parts, given)


def _text(backbone: Any) -> Case:
    """A model that makes pictures or clips of text, or clips of text and their first frame."""
    many = backbone.makes == "video"
    call: dict[str, Any] = {**_small(backbone.multiple), "guidance_scale": 3.0}
    call |= {"num_frames": backbone.fewest_frames} if many else {}
    given = _picture(call["height"]) if starts_from_image(backbone) else None
    begin: dict[str, Any] = {} if given is None else {"images": given[None]}
    wanted = (clips if many else images)(backbone=backbone, prompts=[PROMPT], **begin, **call, seeds=[SEED])
    parts = {name: merged(part) for name, part in backbone.parts().items() if isinstance(part, nn.Module)}
    ask = {"kind": "text", "class": backbone.pipeline_class, "parts": sorted(parts), "call": call, "prompt": PROMPT}
    return Case(ask, wanted, parts) if given is None else Case(ask, wanted, parts, given)


def _embedding(backbone: Prior) -> Case:
    """A prior: a text's embedding to an image's; of unit length, so that a level is a share of it."""
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(prior=folded(backbone.prior))
    with torch.no_grad(), evaluating(backbone):
        made = pipeline([PROMPT], **call, generator=torch.Generator().manual_seed(SEED)).image_embeds
    parts = {"prior": merged(backbone.prior), "image_encoder": backbone.image_encoder}
    parts["text_encoder"] = backbone.text.model
    wanted = nn.functional.normalize(made, dim=-1).numpy()
    return Case({"kind": "embedding", "call": call, "prompt": PROMPT}, wanted, parts, unit=1 / 255)


def _clip(backbone: CLIP) -> Case:
    frames = _pixels(backbone.num_frames or 1)[None]
    pixels = pixels_of(frames, backbone.model.config.vision_config, backbone.processor, backbone.path)
    return _whole(backbone, {"kind": "clip"}, frames, pixels)


def _siglip(backbone: SigLIP) -> Case:
    frames = _pixels(1)[None]
    pixels = prepare(frames[0], backbone.model.config.vision_config.image_size, backbone.processor)
    return _whole(backbone, {"kind": "siglip"}, frames, pixels)


def _whole(backbone: CLIP | SigLIP, ask: dict[str, Any], frames: Tensor, pixels: Tensor) -> Case:
    """What the towers give, of unit length; nothing that stands on top of them, which no library has a place for."""
    with torch.no_grad(), evaluating(backbone):
        ids, mask = backbone.tokens([PROMPT])
        text, image = backbone.text_features(ids, mask), backbone.visual_features(frames)[:, 0]
    wanted = nn.functional.normalize(torch.cat([text, image]), dim=-1).numpy()
    ask |= {"prompt": PROMPT, "tokens": ids.shape[1]}
    return Case(ask, wanted, {"model": merged(backbone.model)}, pixels.numpy(), unit=1 / 255)


def _pair(backbone: Pair) -> Case:
    """Each tower by its own library; our own 3D CNN, which has none, is proved by loading the pair again."""
    text, visual = backbone.towers.text, backbone.towers.visual
    frames = _pixels(backbone.num_frames or 1)[None]
    with torch.no_grad(), evaluating(backbone):
        ids, mask = backbone.tokens([PROMPT])
        wanted = [text(ids, mask)[0]]
        parts = {"text": merged(text.model)}
        ask: dict[str, Any] = {"kind": "pair", "prompt": PROMPT + backbone.ending, "text": type(text.model).__name__}
        ask |= {"tokens": ids.shape[1], "visual": None}
        given = torch.zeros(0)
        if hasattr(visual, "pixels"):
            given = visual.pixels(frames)
            wanted.append(visual(frames)[0, 0])
            parts["visual"], ask["visual"] = merged(visual.model), type(visual.model).__name__
    unit = [nn.functional.normalize(part, dim=-1).numpy() for part in wanted]
    return Case(ask, np.concatenate(unit), parts, given.numpy(), unit=1 / 255)


def _codec(backbone: Codec) -> Case:
    """Pictures there and back; of a codec that divides time too, one clip."""
    frames = _pixels(FRAMES)
    if isinstance(backbone, WanCodec):
        frames = _pixels(step_of(backbone.model) + 1).transpose(0, 1)[None]
    with torch.no_grad(), evaluating(backbone):
        encoded = backbone.model.encode(frames)
        latents = encoded.latents if isinstance(backbone, VQCodec) else encoded.latent_dist.mode()
        more = {"num_frames": FRAMES} if isinstance(backbone, KLCodec) and backbone.temporal else {}
        wanted = backbone.model.decode(latents, **more).sample.numpy()
    ask = {"kind": "codec", "class": type(backbone.model).__name__}
    return Case(ask, wanted, {"model": backbone.model}, frames.numpy(), unit=2 / 255)


def _pixels(count: int) -> Tensor:
    """Pictures float32 ``[b c h w]`` in [-1, 1]."""
    picture = torch.from_numpy(_picture(SIDE)).permute(2, 0, 1).float() / 127.5 - 1
    return torch.stack([picture.roll(8 * i, -1) for i in range(count)])


CASES: dict[type, Callable[[Any], Case]] = {
    StableVideoDiffusion: _video,
    CLIP: _clip,
    SigLIP: _siglip,
    Pair: _pair,
    KLCodec: _codec,
    VQCodec: _codec,
    WanCodec: _codec,
    Prior: _embedding,
}


def case_of(backbone: Any) -> Callable[[Any], Case] | None:
    """How a backbone is asked; None for a family that cannot be proved."""
    return CASES.get(type(backbone), _text if hasattr(backbone, "makes") else None)


# the other process ----------------------------------------------------------------------------------------------------


def ask_vanilla(case: Case, folder: Path) -> tuple[np.ndarray, dict[str, str]]:
    """What a process without mmtrain answers, and the digests of the modules that it opened.

    Raises:
        UserError: it does not run there.
    """
    with tempfile.TemporaryDirectory() as room:
        place = Path(room)
        ask = {**case.ask, "folder": str(folder.resolve()), "seed": SEED, "threads": torch.get_num_threads()}
        (place / "ask.json").write_text(json.dumps(ask))
        np.save(place / "input.npy", case.given)
        done = _run(place)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise refused(folder, f"it does not run there ({said[-1] if said else f'status {done.returncode}'})")
        output = np.load(place / "output.npy", allow_pickle=False)
        return output, json.loads((place / "digests.json").read_text())


def _run(place: Path) -> subprocess.CompletedProcess[str]:
    """-P: the script's own folder, which holds a `diffusers.py`, stays out of the path."""
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"}
    words = [sys.executable, "-P", str(SCRIPT), str(place)]
    return subprocess.run(words, cwd=place, env={**os.environ, **quiet}, capture_output=True, text=True)


def refused(folder: Path, came: str) -> UserError:
    wanted = "an export that the libraries open and that gives what was trained"
    return UserError(f"export {folder.name}", came, wanted, "nothing was kept; report this as a bug of mmtrain")
