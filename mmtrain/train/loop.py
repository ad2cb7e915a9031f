"""The steps of a run: Lightning's Trainer with our callbacks around one module and one loader."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from mmtrain import config
from mmtrain.data.stream import Stream
from mmtrain.run import Run
from mmtrain.threads import calibrate
from mmtrain.train.callbacks import Checkpoints, Log, Marks, Shown
from mmtrain.train.heldout import HeldOut
from mmtrain.train.launch import Ranks
from mmtrain.train.lean import NoProfiler, Together
from mmtrain.train.loggers import Loggers
from mmtrain.train.module import TrainModule, train_what_trains
from mmtrain.train.schedule import Fit
from mmtrain.train.stop import Stop
from mmtrain.train.strategy import arguments
from mmtrain.train.voice import Voice


@dataclass(frozen=True)
class Job:
    """What is to be trained: ``module`` on ``source`` up to the step ``until``."""

    cfg: DictConfig
    schedule: Fit
    module: TrainModule
    source: Stream
    run: Run
    voice: Voice
    ranks: Ranks
    until: int


def train(job: Job) -> None:
    """The remaining steps. Raises Stopped if a signal ended them early."""
    schedule, module, run, ranks = job.schedule, job.module, job.run, job.ranks
    loggers = Loggers(job.cfg.logger if ranks.is_first else {}, run.path / "events", job.voice)
    stop = Stop()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    callbacks = _callbacks(job, loggers, stop)
    [save] = [callback for callback in callbacks if isinstance(callback, Checkpoints)]
    trainer = pl.Trainer(
        **arguments(schedule, ranks),
        max_steps=job.until - module.step,
        precision=schedule.precision,
        logger=False,
        callbacks=[Together(callbacks)],
        profiler=NoProfiler(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
        log_every_n_steps=10**9,
    )
    loader = job.source.loader(
        seed=job.cfg.seed,
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        consumed=module.step,
        rank=ranks.index,
        world_size=ranks.count,
        num_workers=schedule.num_workers,
    )
    count = sum(w.numel() for w in module.weights.values() if w.requires_grad)
    frozen = sum(w.numel() for w in module.backbone.parameters()) - count
    threads = _choose_threads(schedule, module, loader, trainer) if ranks.count == 1 else torch.get_num_threads()
    if ranks.is_first:
        run.update_manifest(trainable=count, frozen=max(frozen, 0), threads=threads, ranks=ranks.count)
    kinds = " and ".join(sorted({str(w.dtype).removeprefix("torch.") for w in module.backbone.parameters()}))
    held = f"{count:,} weights train, {max(frozen, 0):,} are frozen ({kinds}, computed in {schedule.precision})"
    job.voice(f"{held}; {threads} thread(s)")
    for name, adapter in module.adapters.items():
        for group, weights in _groups(adapter).items():
            job.voice(f"  {name}: {sum(w.numel() for w in weights):,} in {group}")
    train_what_trains(module.backbone, dict(module.adapters.items()))
    try:
        trainer.fit(module, loader)
    finally:
        loggers.close("success" if module.step == job.until or save.enough else "failed")
    stop.raise_if_asked(module.step, run.path)


def _groups(adapter: Any) -> dict[str, list[torch.Tensor]]:
    """What trains of an adapter, by the first word of its weights' names."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, weight in adapter.named_weights().items():
        groups.setdefault(name.split(".")[0], []).append(weight)
    return groups


def _callbacks(job: Job, loggers: Loggers, stop: Stop) -> list[pl.Callback]:
    """In the order in which a step's end calls them: what is to be saved is known and logged before it is saved."""
    cfg, schedule, source, run, voice = job.cfg, job.schedule, job.source, job.run, job.voice
    log = Log(run.path / "metrics.csv", schedule.log_every, loggers)
    save = Checkpoints(
        log=log,
        stop=stop,
        stream=source,
        voice=voice,
        folder=run.path / "checkpoints",
        run_id=run.run_id,
        every=schedule.checkpoint_every,
        keep=schedule.keep,
        until=job.until,
        best=schedule.best,
        heldout=_heldout(cfg, schedule, run),
        patience=schedule.patience,
    )
    previews = [] if cfg.preview is None else [config.build(cfg.preview, loggers=loggers)]
    return [stop, log, Marks(run.path / "digests.csv"), save, Shown(log, cfg.name, source, voice), *previews]


def _heldout(cfg: DictConfig, schedule: Fit, run: Run) -> HeldOut | None:
    if cfg.heldout is None:
        return None
    stream, file = config.build(cfg.heldout), run.path / "heldout.csv"
    size, batches = schedule.batch_size, schedule.heldout_batches
    return HeldOut(stream, batch_size=size, batches=batches, file=file)


def _choose_threads(schedule: Fit, module: TrainModule, loader: Any, trainer: pl.Trainer) -> int:
    """As told, or as many as a step pays for, in the precision in which steps will be made."""
    if schedule.threads != "auto":
        return schedule.threads
    batch = next(iter(loader)).to(module.device)

    def work() -> None:
        with trainer.precision_plugin.forward_context():
            loss = module.mean_loss(batch, torch.Tensor.backward)
        loss.backward()
        for weight in module.weights.values():
            weight.grad = None

    return calibrate(work)
