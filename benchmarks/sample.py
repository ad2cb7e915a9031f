"""What sampling costs: inference steps, prompts at once, guidance, compiled networks, int8, and decoding in chunks.

    make bench-sample
    COMPILE=1 make bench-sample     # torch.compile besides: minutes of compiling, with a C++ compiler
    ONNX=1 make bench-sample        # the network by ONNX Runtime besides: pip install -e '.[onnx]'

The shipped tiny Stable Diffusion and Stable Video Diffusion, fp32, one thread, in alternate rounds of one process.
A model that needs four steps is what `objective=consistency` trains; here only the time of its four steps is measured,
not its pictures. Memory is of the tensors of real calls.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Report
from benchmarks.rounds import in_turn, rounds_asked
from mmtrain import config
from mmtrain.backbone.outline import outlined
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.sdxl import StableDiffusionXL
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.wan import Wan
from mmtrain.export.onnx import write_onnx
from mmtrain.sample import onnx
from mmtrain.sample.generate import images
from mmtrain.sample.held import hold
from mmtrain.sample.video import VideoSampler
from mmtrain.threads import keep_pages
from mmtrain.train.measure import measured

SHIPPED = {"sd": StableDiffusion, "svd": StableVideoDiffusion}
ROUNDS, STEPS, FEW = rounds_asked(3), 16, 4
PROMPT = "a red circle moving left on black"


def pictures(report: Report, model: StableDiffusion) -> None:
    few = StableDiffusion(path=config.shipped("sd"), few_steps=True)

    def drawn(count: int, steps: int, which: Any = model, guidance: float = 7.5) -> Callable[[], float]:
        asked: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        return lambda: len(images(backbone=which, prompts=[PROMPT] * count, seeds=list(range(count)), **asked))

    ways = {
        f"{STEPS} steps, one prompt": drawn(1, STEPS),
        f"{STEPS} steps, eight prompts at once": drawn(8, STEPS),
        f"{STEPS} steps, one prompt, no guidance": drawn(1, STEPS, guidance=1.0),
        f"{FEW} steps by latent consistency, one prompt": drawn(1, FEW, few, 1.0),
    }
    if os.environ.get("COMPILE") == "1":
        ways[f"{STEPS} steps, one prompt, compiled"] = _compiled(drawn)
    if os.environ.get("ONNX") == "1":
        ways[f"{STEPS} steps, one prompt, network by ONNX Runtime"] = _by_onnx_runtime(drawn)
    held = StableDiffusion(path=config.shipped("sd"))
    hold(held, 8)
    ways[f"{STEPS} steps, one prompt, network in int8"] = drawn(1, STEPS, held)
    aims = {f"{STEPS} steps, eight prompts at once": 6.0, f"{FEW} steps by latent consistency, one prompt": 3.0}
    report.arms("text → image, 64 px", in_turn(ways, count=ROUNDS), unit="sample", aims=aims)


def _compiled(drawn: Callable[..., Callable[[], float]]) -> Callable[[], float]:
    """Its network has no adapters to fold, and is sampled as it stands."""
    model = StableDiffusion(path=config.shipped("sd"))
    model.unet.forward = torch.compile(model.unet.forward)
    return drawn(1, STEPS, model)


def _by_onnx_runtime(drawn: Callable[..., Callable[[], float]]) -> Callable[[], float]:
    model = StableDiffusion(path=config.shipped("sd"))
    with tempfile.TemporaryDirectory() as room:
        onnx.use(model, write_onnx(model, Path(room), {}))
    return drawn(1, STEPS, model)


def clips(report: Report, sampler: VideoSampler) -> None:
    def made(count: int, steps: int, guidance: float | None = None) -> Callable[[], float]:
        asked: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        return lambda: len(sampler.frames(prompts=[PROMPT] * count, seeds=list(range(count)), **asked))

    ways = {
        f"{STEPS // 2} steps, one prompt": made(1, STEPS // 2),
        f"{STEPS // 2} steps, eight prompts at once": made(8, STEPS // 2),
        f"{FEW} steps, no guidance, one prompt": made(1, FEW, 1.0),
    }
    report.arms("text → video, 8 frames of 64 px", in_turn(ways, count=ROUNDS), unit="sample")


def decoding(report: Report, model: StableVideoDiffusion) -> None:
    """The codec's memory and time by how many frames it decodes at once; what is not all at once differs a little."""
    channels = int(model.unet.config.out_channels)
    latents = torch.randn(8, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    rows, whole = [], None
    for chunk in (8, 4, 2, 1):
        frames: list[Any] = []

        @torch.no_grad()
        def decode(chunk: int = chunk, frames: list[Any] = frames) -> None:
            frames[:] = [model.vae.decode(part, num_frames=len(part)).sample for part in latents.split(chunk)]

        peak = measured(decode, outline=False).peak
        start = time.process_time()
        decode()
        spent, video = time.process_time() - start, torch.cat(frames)
        whole = video if whole is None else whole
        away = float((video - whole).abs().max() * 127.5)
        rows.append({"frames at once": chunk, "peak MB": peak / 1e6, "s, processor": spent, "levels of 255 away": away})
    report.table("decoding 8 frames of 64 px", rows)


PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": StableDiffusion,
    "stabilityai/stable-diffusion-xl-base-1.0": StableDiffusionXL,
    "stabilityai/stable-video-diffusion-img2vid-xt": StableVideoDiffusion,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Wan,
}


def eight_bits(report: Report) -> None:
    """What `--bits 8` saves of a network: the shipped ones, and published ones by their shapes alone."""
    rows = []
    shipped = {f"shipped {name}": kind(path=config.shipped(name)) for name, kind in SHIPPED.items()}
    with outlined():
        models = shipped | {path: kind(path=path) for path, kind in PUBLISHED.items()}
    for name, model in models.items():
        before, after = hold(model, 8)
        rows.append({"network": name, "MB, 32 bits": before / 1e6, "MB, int8": after / 1e6, "share": after / before})
    report.table("a network held in eight bits", rows)


def main() -> None:
    keep_pages()
    torch.set_num_threads(1)
    report = Report("sample")
    eight_bits(report)
    pictures(report, StableDiffusion(path=config.shipped("sd")))
    model = StableVideoDiffusion(path=config.shipped("svd"), text_path=config.shipped("clip"))
    clips(report, VideoSampler(backbone=model))
    decoding(report, model)
    report.write()


if __name__ == "__main__":
    main()
