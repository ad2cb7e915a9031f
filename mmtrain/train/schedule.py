"""``Fit``: how long, how large and where a run is, as `conf/trainer` says it. Builds nothing."""

from typing import Literal

from mmtrain.errors import UserError


class Fit:
    """How long, how large, where.

    Args:
        steps: optimizer steps of the whole run.
        batch_size: samples of one batch, over all devices; each is one optimizer step.
        accumulate: in how many pieces a batch goes through the network, to save memory. The gradients are those of one
            piece: contrastive objectives still compare the whole batch (each piece runs twice then).
        accelerator, precision: as Lightning's Trainer takes them.
        devices, num_nodes: devices of a machine, and machines. Each device has a process of its own.
        strategy: how several share the work: ``ddp`` (weights on each) or ``fsdp`` (weights in pieces on all).
        rank_timeout: seconds in which a rank must answer the others, or all stop.
        frozen_bits: in which the frozen matrices of a denoiser are held, 32 or 16; 16 goes with a mixed precision,
            whose steps are the same then, bit for bit, in half the memory for weights.
        clip: norm to which gradients are clipped.
        checkpointing: keep only each block's input, and compute the block again when its gradient is due.
        compile: have torch compile the network; the first step then takes minutes.
        threads: CPU threads, or ``auto`` to measure which count pays on this machine now (one for each of several
            processes).
        num_workers: processes that decode.
        ema: decay of the moving average that is exported, or None for none.
        log_every, checkpoint_every: in optimizer steps.
        keep: checkpoints kept, the newest ones.
        best: ``loss`` or ``heldout``: the checkpoint at which it was lowest is kept besides; None: none is.
        patience: checkpoints without a new best one after which the run ends early; what is exported then is the best.
            None: it goes on to the last step, and the newest is exported.
        heldout_batches: batches of the config's ``heldout`` that are measured at every checkpoint.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        accumulate: int = 1,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        devices: int = 1,
        num_nodes: int = 1,
        strategy: Literal["ddp", "fsdp"] = "ddp",
        rank_timeout: float = 120.0,
        precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
        frozen_bits: Literal[32, 16] = 32,
        clip: float = 1.0,
        checkpointing: bool = False,
        compile: bool = False,
        threads: int | Literal["auto"] = "auto",
        num_workers: int = 0,
        ema: float | None = None,
        log_every: int = 10,
        checkpoint_every: int = 200,
        keep: int = 2,
        best: Literal["loss", "heldout"] | None = None,
        patience: int | None = None,
        heldout_batches: int = 8,
    ) -> None:
        positive: dict[str, float] = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate}
        positive |= {"log_every": log_every, "checkpoint_every": checkpoint_every, "keep": keep, "devices": devices}
        positive |= {"heldout_batches": heldout_batches, "num_nodes": num_nodes, "rank_timeout": rank_timeout}
        for name, value in positive.items():
            if value < 1:
                raise UserError(f"trainer.{name}", str(value), "at least 1", "give a positive number")
        if patience is not None and (patience < 1 or best is None):
            came = f"{patience} beside best {best}"
            raise UserError("trainer.patience", came, "at least 1, and a best", "set trainer.best, or patience=null")
        if frozen_bits == 16 and (precision == "32-true" or strategy == "fsdp"):
            came = f"16 beside precision {precision}, strategy {strategy}"
            fix = "set trainer.precision=bf16-mixed, or trainer.frozen_bits=32"
            raise UserError("trainer.frozen_bits", came, "a mixed precision, and no fsdp", fix)
        self.patience, self.frozen_bits = patience, frozen_bits
        self.steps, self.batch_size, self.threads, self.num_workers = steps, batch_size, threads, num_workers
        self.accelerator, self.devices, self.strategy, self.precision = accelerator, devices, strategy, precision
        self.clip, self.ema, self.accumulate = clip, ema, accumulate
        self.checkpointing, self.compile = checkpointing, compile
        self.log_every, self.checkpoint_every, self.keep = log_every, checkpoint_every, keep
        self.best, self.heldout_batches = best, heldout_batches
        self.num_nodes, self.rank_timeout = num_nodes, rank_timeout
