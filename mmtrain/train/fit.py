"""From a checked config to a finished run: data, backbone, adapters, cache, training. The order is: what is cheap to
get wrong comes first."""

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich.console import Console

from mmtrain import artifact, config
from mmtrain.batch import to_unit
from mmtrain.data.cache import encode_shards, place
from mmtrain.data.mixture import Mixture
from mmtrain.data.source import Source
from mmtrain.data.stream import Stream
from mmtrain.errors import UserError
from mmtrain.run import Run
from mmtrain.threads import calibrate
from mmtrain.train import checkpoint
from mmtrain.train.callbacks import Checkpoints, Log, Shown
from mmtrain.train.module import TrainModule


class Fit:
    """How long, how large, where.

    Args:
        steps: optimizer steps of the whole run.
        batch_size: samples of one batch, over all devices; each is one optimizer step.
        accumulate: in how many pieces a batch goes through the network, to save memory. The gradients are those of one
            piece: contrastive objectives still compare the whole batch (each piece runs twice then).
        accelerator, devices, strategy, precision: as Lightning's Trainer takes them.
        clip: norm to which gradients are clipped.
        threads: CPU threads, or ``auto`` to measure which count pays on this machine now.
        num_workers: processes that decode.
        ema: decay of the moving average that is exported, or None for none.
        log_every, checkpoint_every: in optimizer steps.
        keep: checkpoints kept.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        accumulate: int = 1,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        devices: int = 1,
        strategy: str = "auto",
        precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
        clip: float = 1.0,
        threads: int | Literal["auto"] = "auto",
        num_workers: int = 0,
        ema: float | None = None,
        log_every: int = 10,
        checkpoint_every: int = 200,
        keep: int = 2,
    ) -> None:
        counts = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate, "log_every": log_every}
        for name, value in {**counts, "keep": keep}.items():
            if value < 1:
                raise UserError(f"trainer.{name}", str(value), "at least 1", "give a positive number")
        self.steps, self.batch_size, self.threads, self.num_workers = steps, batch_size, threads, num_workers
        self.accelerator, self.devices, self.strategy, self.precision = accelerator, devices, strategy, precision
        self.clip, self.ema, self.accumulate = clip, ema, accumulate
        self.log_every, self.checkpoint_every, self.keep = log_every, checkpoint_every, keep


def fit(cfg: DictConfig, *, resume: Path | None = None) -> Path:
    """Run a checked config to its end and return the run's folder.

    Args:
        cfg: as `config.compose` gives it, checked.
        resume: folder of a run of the same identity, to be continued from its newest checkpoint.

    Raises:
        UserError: whatever the user can mend, at the earliest moment.
    """
    say = Console(stderr=True, highlight=False)
    schedule: Fit = config.build(cfg.trainer)
    torch.set_num_threads(1 if schedule.threads == "auto" else schedule.threads)
    if schedule.accelerator == "cpu" and schedule.precision != "32-true":
        # On a CPU the fused attention's backward pass in 16 bits is slower than the two products that it fuses.
        torch.backends.cuda.enable_flash_sdp(False)
    pixels: Source | Mixture = config.build(cfg.dataset)
    say.print(f"[bold]{cfg.name}[/]: {len(pixels)} samples in {pixels.shards}")
    backbone, adapters = artifact.assemble(cfg)
    run = _run(cfg, pixels, backbone, resume)
    source = _cached(cfg, pixels, backbone, schedule, say)
    module = TrainModule(
        backbone=backbone,
        adapters=adapters,
        objective=config.build(cfg.objective),
        optim=config.build(cfg.optim),
        seed=cfg.seed,
        steps=schedule.steps,
        ema=schedule.ema,
        clip=schedule.clip,
        accumulate=schedule.accumulate,
    )
    if resume is not None:
        newest = artifact.newest(run.path / "checkpoints")
        checkpoint.restore(module, newest)
        source.note(checkpoint.bad_samples(newest))
        say.print(f"resumed at step {module.done}")
    if module.done < schedule.steps:
        _train(cfg, schedule, module, source, run, say)
    for stream in dict.fromkeys([pixels, source]):
        for shard, kinds in stream.bad_counts.items():
            say.print(f"replaced in {shard}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    say.print(f"run: {run.path}")
    return run.path


def _run(cfg: DictConfig, source: Stream, backbone: Any, resume: Path | None) -> Run:
    if resume is None:
        return Run.start(cfg, cfg.folder, data=source.fingerprint, bases={"backbone": backbone.base})
    run = Run.open(resume)
    different = run.differences(cfg)
    if run.manifest["data"] != source.fingerprint:
        different.append("data: the shards' contents differ")
    if different:
        raise UserError(str(resume), "; ".join(different), "the identity of the run", "start a new run instead")
    return run


def _cached(cfg: DictConfig, pixels: Source | Mixture, backbone: Any, schedule: Fit, say: Console) -> Source | Mixture:
    """The source of encoder outputs, encoded now if they are not there yet; the pixels where no cache is asked for."""
    if cfg.cache is None or pixels.kind == "encoded":
        return pixels
    if isinstance(pixels, Mixture):
        sources = {name: _encoded(cfg, source, backbone, schedule, say) for name, source in pixels.sources.items()}
        return Mixture(sources=sources, weights=pixels.weights)
    return _encoded(cfg, pixels, backbone, schedule, say)


def _encoded(cfg: DictConfig, pixels: Source, backbone: Any, schedule: Fit, say: Console) -> Source:
    folder = place(cfg.cache, pixels, backbone.encoder_id)
    shown = _Encoding(say)
    if schedule.threads == "auto":
        frames = torch.stack([_first(pixels)] * 4)
        calibrate(lambda: backbone.encode(frames))
    encode_shards(pixels, folder, encode=backbone.encode, encoder_id=backbone.encoder_id, batch_size=8, progress=shown)
    return Source(
        shards=str(folder),
        window=pixels.window,
        buckets=pixels.buckets,
        max_bad_fraction=pixels.max_bad_fraction,
        require_captions=pixels.require_captions,
    )


def _first(source: Source) -> torch.Tensor:
    return to_unit(source.sample(0).frames.copy())


class _Encoding:
    """Says every tenth how far the encoding is."""

    def __init__(self, say: Console) -> None:
        self.say, self.tenth = say, 0

    def __call__(self, done: int, total: int) -> None:
        if done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            self.say.print(f"encoding {done}/{total}")


def _train(cfg: DictConfig, schedule: Fit, module: TrainModule, source: Stream, run: Run, say: Console) -> None:
    log = Log(run.path / "metrics.csv", schedule.log_every)
    save = Checkpoints(log, run.path / "checkpoints", run.run_id, schedule.checkpoint_every, schedule.keep, source)
    previews = [] if cfg.preview is None else [config.build(cfg.preview)]
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    trainer = pl.Trainer(
        max_steps=schedule.steps - module.done,
        accelerator=schedule.accelerator,
        devices=schedule.devices,
        strategy=schedule.strategy,
        precision=schedule.precision,
        logger=[config.build(node, save_dir=str(run.path)) for node in cfg.logger.values()],
        callbacks=[log, save, Shown(log, cfg.name, source), *previews],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
        log_every_n_steps=10**9,
    )
    loader = source.loader(
        seed=cfg.seed,
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        consumed=module.done,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        num_workers=schedule.num_workers,
    )
    count = sum(w.numel() for w in module.weights.values())
    frozen = sum(w.numel() for w in module.backbone.parameters()) - count
    threads = _choose_threads(schedule, module, loader)
    run.update_manifest(trainable=count, frozen=max(frozen, 0), threads=threads)
    say.print(f"{count:,} weights train, {max(frozen, 0):,} are frozen; {threads} thread(s)")
    module.backbone.train(artifact.is_whole_backbone(dict(module.adapters.items())))
    trainer.fit(module, loader)


def _choose_threads(schedule: Fit, module: TrainModule, loader: Any) -> int:
    if schedule.threads != "auto":
        return schedule.threads
    batch = next(iter(loader))

    def work() -> None:
        module.mean_loss(batch, torch.Tensor.backward).backward()
        for weight in module.weights.values():
            weight.grad = None

    return calibrate(work)
