"""From a checked config to a finished run: data, backbone, adapters, cache, training. The order is: what is cheap to
get wrong comes first."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.markup import escape

from mmtrain import artifact, config
from mmtrain.backbone.aligned import Aligned
from mmtrain.batch import to_unit
from mmtrain.data.cache import encode_shards, place
from mmtrain.data.mixture import Mixture
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.run import Run, checkpoints, resolved
from mmtrain.threads import as_many_as_pay
from mmtrain.train import checkpoint
from mmtrain.train.encode import encoding, place_of, stored
from mmtrain.train.failures import explained
from mmtrain.train.held import hold, idle, set_aside
from mmtrain.train.launch import Ranks, is_to_be_started, joined, start
from mmtrain.train.lighten import compile_network, lighten
from mmtrain.train.loop import Job, train
from mmtrain.train.module import TrainModule
from mmtrain.train.recall import fill_memories, recall_text
from mmtrain.train.resume import Ask, refuse_early, taken_up
from mmtrain.train.schedule import Fit
from mmtrain.train.voice import Voice


def fit(cfg: DictConfig, ask: Ask) -> Path:
    """Run a checked config to its end and return the run's folder.

    Args:
        cfg: as `config.compose` gives it, checked.

    Raises:
        UserError: whatever the user can mend, at the earliest moment; a `Failure` for what went wrong on the way.
        Stopped: a signal asked for it; all is saved.
    """
    schedule: Fit = config.build(cfg.trainer)
    if is_to_be_started(schedule):
        return start(resolved(cfg), ask.told(), schedule)
    voice = Voice()
    try:
        with joined(schedule) as ranks:
            voice.silent = not ranks.is_first
            return _fit(cfg, schedule, ask, ranks, voice)
    except Exception as error:
        told = explained(error)
        voice(f"{type(error).__name__}: {told or error}", shown=False)
        if told is None or told is error:
            raise
        raise told from error


def _fit(cfg: DictConfig, schedule: Fit, ask: Ask, ranks: Ranks, voice: Voice) -> Path:
    torch.set_num_threads(1 if schedule.threads == "auto" else schedule.threads)
    if schedule.accelerator == "cpu" and schedule.precision != "32-true":
        # On a CPU the fused attention's backward pass in 16 bits is slower than the two products that it fuses.
        torch.backends.cuda.enable_flash_sdp(False)
    if schedule.best == "heldout" and cfg.heldout is None:
        raise UserError("trainer.best", "heldout", "a heldout data set", "add `- /dataset@heldout: <option>`")
    pixels: Source | Mixture = config.build(cfg.dataset)
    voice(f"[bold]{escape(cfg.name)}[/]: {len(pixels)} samples in {escape(pixels.shards)}")
    if isinstance(ask.resume, Path):
        refuse_early(Run.open(ask.resume), cfg, ask.allow)
    backbone, adapters = artifact.assemble(cfg)
    lighten(backbone, schedule)
    if schedule.compile:
        compile_network(backbone, adapters)
    objective, optim = config.build(cfg.objective), config.build(cfg.optim)
    folder, step = ranks.shared("run", lambda: taken_up(cfg, pixels, backbone, ask, voice))
    run = Run.open(folder)
    source = ranks.in_turn(lambda: _cached(cfg, pixels, backbone, schedule, voice))
    if step is None:
        fill_memories(backbone, adapters, source, cfg.seed)
        if cfg.align is not None:
            reached = config.build(cfg.align)(backbone, source, cfg.seed)
            voice("aligned: " + ", ".join(f"{name} {value:.3g}" for name, value in reached.items()))
    hold(backbone, schedule)
    set_aside(backbone, idle(cfg, backbone))
    module = TrainModule(
        backbone=backbone,
        adapters=adapters,
        objective=objective,
        optim=optim,
        seed=cfg.seed,
        steps=schedule.steps,
        ema=schedule.ema,
        clip=schedule.clip,
        accumulate=schedule.accumulate,
    )
    if step is not None:
        newest = run.path / "checkpoints" / checkpoints.name_of(step)
        checkpoint.restore(module, newest)
        source.note(checkpoint.bad_samples(newest))
        voice(f"resumed at step {module.step}")
    until = min(schedule.steps, ask.until or schedule.steps)
    if module.step < until:
        train(Job(cfg, schedule, module, source, run, voice, ranks, until))
    for stream in dict.fromkeys([pixels, source]):
        for shard, kinds in stream.bad_counts.items():
            voice(f"replaced in {shard}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if isinstance(backbone, Aligned) and backbone.truncated:
        voice(f"captions cut to the text tower's limit: {len(backbone.truncated)}")
    replaced = {shard: kinds for stream in (pixels, source) for shard, kinds in stream.bad_counts.items()}
    if ranks.is_first:
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        run.update_manifest(finished=finished, step=module.step, replaced=replaced)
    voice(f"run: {escape(str(run.path))}")
    return run.path


def _cached(cfg: DictConfig, pixels: Source | Mixture, backbone: Any, schedule: Fit, voice: Voice) -> Source | Mixture:
    """The source of encoder outputs, encoded now if they are not there yet; the pixels where no cache is asked for."""
    if cfg.cache is None or pixels.kind == "encoded":
        return pixels
    if isinstance(pixels, Mixture):
        sources = {name: _encoded(cfg, source, backbone, schedule, voice) for name, source in pixels.sources.items()}
        return Mixture(sources=sources, weights=pixels.weights)
    return _encoded(cfg, pixels, backbone, schedule, voice)


def _encoded(cfg: DictConfig, pixels: Source, backbone: Any, schedule: Fit, voice: Voice) -> Source:
    kept = stored(backbone)
    encoder_id = backbone.encoder_id
    folder = place(cfg.cache, pixels, encoder_id, kept)
    shown = _Encoding(voice)
    here = place_of(schedule)
    how: dict[str, Any] = {"encoder_id": encoder_id, "batch_size": 8, "dtype": kept, "progress": shown}
    measured = schedule.threads == "auto" and here.type == "cpu" and not folder.exists()
    with as_many_as_pay(_trial(pixels, backbone)) if measured else nullcontext(), encoding(backbone, here) as encode:
        encode_shards(pixels, folder, encode=encode, **how)
    source = Source(
        shards=str(folder),
        window=pixels.window,
        buckets=pixels.buckets,
        max_bad_fraction=pixels.max_bad_fraction,
        require_captions=pixels.require_captions,
    )
    if isinstance(backbone, Aligned):
        recall_text(backbone, source, folder, _Encoding(voice))
    return source


def _trial(source: Source, backbone: Any) -> Callable[[], object]:
    """Four samples to encode."""
    frames = torch.stack([to_unit(source.sample(0).frames.copy())] * 4)
    return lambda: backbone.encode(frames)


class _Encoding:
    """Says every tenth how far the encoding is."""

    def __init__(self, voice: Voice) -> None:
        self.voice, self.tenth = voice, 0

    def __call__(self, done: int, total: int) -> None:
        if done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            self.voice(f"encoding {done}/{total}")
