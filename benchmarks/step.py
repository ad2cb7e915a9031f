"""What a LoRA step on Stable Diffusion costs: bare loops, mmtrain as a user runs it, and diffusers' own script.

    make bench-step
    PEER=<folder>/train_text_to_image_lora.py make bench-step
    COMPILE=1 ...                   # torch.compile besides: it wants a C++ compiler and a minute
    BENCH_PART=trivial ...          # that part alone, or several of: trivial sd knobs optimizers

The tiny Stable Diffusion that is shipped, 128 × 128 pixels, batch 8, rank 4 on every attention, the same JPEGs and
captions, fp32. ``mmtrain`` is the whole command (`mmtrain train sd_lora`) with its log, progress line and callbacks;
``bare`` is the same maths in plain PyTorch. Before that, what Lightning and our code add to a step that does nearly
nothing (`overhead.py`).
"""

import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.diffusers_script import script
from benchmarks.knobs import knobs
from benchmarks.optimizers import optimizers
from benchmarks.overhead import trivial
from benchmarks.report import Report
from benchmarks.rounds import Arm, Gate, rounds, rounds_asked
from mmtrain import config
from mmtrain.data import world
from mmtrain.data.shards import ShardWriter
from mmtrain.threads import keep_pages

ROUNDS, STEPS, BATCH, SIDE, IMAGES, RANK = rounds_asked(3), 4, 8, 128, 32, 4
FOREVER = 1_000_000


def write(folder: Path) -> None:
    """The same JPEGs with their captions as a shard, as encoder outputs, and as a folder for `datasets`."""
    rng, rows = world.rng_of("bench step"), []
    (folder / "images").mkdir(parents=True)
    with ShardWriter(folder / "shards", max_samples=IMAGES) as writer:
        for i in range(IMAGES):
            scene = world.scene(0, "train", i)
            picture = Image.fromarray(world.render(scene, num_frames=1)[0]).resize((SIDE, SIDE))
            picture.save(out := io.BytesIO(), "JPEG", quality=95)
            words = world.caption(scene, rng)
            writer.write(f"{i:06d}", {"jpg": out.getvalue(), "txt": words.encode()})
            (folder / "images" / f"{i:06d}.jpg").write_bytes(out.getvalue())
            rows.append({"file_name": f"{i:06d}.jpg", "text": words})
    (folder / "images" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(folder: Path, *words: str) -> Arm:
    """The command, with a gate behind each of its steps."""

    def arm(gate: Gate) -> None:
        from mmtrain import cli
        from mmtrain.train.module import TrainModule

        TrainModule.on_train_batch_end = lambda self, *args: gate()  # type: ignore[method-assign]
        given = [f"dataset.shards={folder / 'shards'}", "dataset.num_frames=null", f"folder={folder / 'runs'}"]
        given += [f"trainer.steps={FOREVER}", f"trainer.checkpoint_every={FOREVER}", "trainer.threads=1"]
        given += [f"trainer.batch_size={BATCH}", "trainer.ema=null", "logger=null", "objective.weighting=own"]
        cli.main(["train", "sd_lora", *given, *words])

    return arm


def lora(*words: str) -> list[str]:
    return [f"adapters.style.rank={RANK}", f"adapters.style.alpha={RANK}", *words]


def bare(folder: Path, cached: bool) -> Arm:
    """The same maths, as one would write it by hand: nothing logged, nothing saved, all data in memory if cached."""

    def arm(gate: Gate) -> None:
        from diffusers import DDPMScheduler
        from peft import LoraConfig

        from mmtrain.threads import keep_pages

        keep_pages()
        model = config.build(config.compose("sd_lora").backbone)
        unet, vae, tower = model.unet, model.vae, model.text_encoder
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        weights = [w for w in unet.parameters() if w.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
        noising = DDPMScheduler.from_config(model.scheduler.config)
        for pixels, ids in _batches(folder, model.tokenizer, _once if cached else _read, vae, tower):
            with torch.no_grad():
                mean, deviation = (t for t in pixels) if cached else _posterior(vae, pixels)
                text = ids if cached else tower(ids).last_hidden_state
                latents = (mean + deviation * torch.randn_like(mean)) * vae.config.scaling_factor
                noise, steps = torch.randn_like(latents), torch.randint(0, len(noising), (BATCH,))
                noisy = noising.add_noise(latents, noise, steps)
            prediction = unet(noisy, steps, text).sample
            target = (
                noise if noising.config.prediction_type == "epsilon" else noising.get_velocity(latents, noise, steps)
            )
            torch.nn.functional.mse_loss(prediction, target).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            gate()

    return arm


def _posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    found = vae.encode(pixels).latent_dist
    return found.mean, found.std


def _read(rows: list[tuple[Path, str]], tokenizer: Any, vae: Any, tower: Any) -> tuple[Any, Tensor]:
    pictures = [np.array(Image.open(path).convert("RGB")) for path, _ in rows]
    pixels = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures])
    given = {"padding": "max_length", "max_length": tower.config.max_position_embeddings, "return_tensors": "pt"}
    return pixels, tokenizer([words for _, words in rows], **given).input_ids


@torch.no_grad()
def _once(rows: list[tuple[Path, str]], tokenizer: Any, vae: Any, tower: Any) -> tuple[Any, Tensor]:
    pixels, ids = _read(rows, tokenizer, vae, tower)
    return _posterior(vae, pixels), tower(ids).last_hidden_state


def _batches(folder: Path, tokenizer: Any, make: Any, *parts: Any) -> Iterator[tuple[Any, Tensor]]:
    lines = (folder / "images" / "metadata.jsonl").read_text().splitlines()
    rows = [(folder / "images" / row["file_name"], row["text"]) for row in map(json.loads, lines)]
    cut = [rows[i : i + BATCH] for i in range(0, IMAGES, BATCH)]
    if make is _once:
        return itertools.cycle([make(part, tokenizer, *parts) for part in cut])
    return (make(part, tokenizer, *parts) for part in itertools.cycle(cut))


def peer(path: Path, folder: Path) -> Arm:
    words = {
        "pretrained_model_name_or_path": config.shipped("sd"),
        "train_data_dir": folder / "images",
        "cache_dir": folder / "datasets",
        "output_dir": folder / "peer",
        "resolution": SIDE,
        "train_batch_size": BATCH,
        "rank": RANK,
        "learning_rate": 1e-3,
        "max_train_steps": FOREVER,
        "checkpointing_steps": FOREVER,
        "seed": 0,
    }
    return script(path, [word for name, value in words.items() for word in (f"--{name}", str(value))])


def sd_steps(report: Report, folder: Path) -> None:
    write(folder)
    cache = f"cache={folder / 'cache'}"
    arms: dict[str, Arm] = {}
    if "PEER" in os.environ:
        arms["diffusers' script"] = peer(Path(os.environ["PEER"]), folder)
    arms["bare loop, from JPEGs"] = bare(folder, cached=False)
    arms["mmtrain, from JPEGs"] = ours(folder, *lora("cache=null"))
    arms["bare loop, cached in memory"] = bare(folder, cached=True)
    arms["mmtrain, cached"] = ours(folder, *lora(cache))
    arms["mmtrain, cached, LoRA on up"] = ours(folder, *lora(cache, "adapters.style.targets=up"))
    if os.environ.get("COMPILE") == "1":
        compiled = lora(cache, "adapters.style.targets=up", "trainer.compile=true")
        arms["mmtrain, cached, LoRA on up, compiled"] = ours(folder, *compiled)
    found = rounds(arms, count=ROUNDS, units=STEPS, warm=IMAGES // BATCH)
    title = f"Stable Diffusion (tiny) LoRA step, {SIDE} px, batch {BATCH}"
    aims = {"mmtrain, from JPEGs": 1.3, "mmtrain, cached": 2.0, "mmtrain, cached, LoRA on up": 3.0}
    aims["mmtrain, cached, LoRA on up, compiled"] = 3.0
    report.arms(title, found, unit="step", aims=aims if "PEER" in os.environ else None)
    for how in ("from JPEGs", "cached"):
        one = next(name for name in found if name.startswith(f"bare loop, {how}"))
        pair = {one: found[one], f"mmtrain, {how}": found[f"mmtrain, {how}"]}
        report.arms(f"over the bare loop, {how}", pair, unit="step", aims={f"mmtrain, {how}": 1 / 1.03})
    if "PEER" not in os.environ:
        report.say("beside diffusers' script: PEER=<folder>/train_text_to_image_lora.py make bench-step")


def main() -> None:
    asked = os.environ.get("BENCH_PART", "trivial sd knobs optimizers").split()
    wanted = set(asked)
    report = Report("step" if "BENCH_PART" not in os.environ else f"step-{'-'.join(asked)}")
    with tempfile.TemporaryDirectory() as name:
        if "trivial" in wanted:
            trivial(report, Path(name))
        if "sd" in wanted:
            sd_steps(report, Path(name))
    if wanted & {"knobs", "optimizers"}:
        keep_pages()
        torch.set_num_threads(1)
    if "knobs" in wanted:
        knobs(report)
    if "optimizers" in wanted:
        optimizers(report)
    report.write()


if __name__ == "__main__":
    main()
