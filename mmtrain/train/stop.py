"""How a run is asked to stop: by a scheduler (SIGTERM, SIGUSR1) or its user (Ctrl-C). Saving is `callbacks.py`'s.

The step that is under way is finished first; all ranks stop behind the same one. A second Ctrl-C stops at once.
"""

import os
import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed

from mmtrain.errors import Stopped

REQUEUE, INTERRUPTED = 75, 130
"""Exit statuses: "try again later" (EX_TEMPFAIL of sysexits.h), by which a scheduler's script puts the job back in the
queue, and the shell's own for Ctrl-C."""


class Stop(pl.Callback):
    """Remembers the signal that came.

    Attributes:
        asked: the signal's number, 0 where none came.
    """

    def __init__(self) -> None:
        self.asked, self.process = 0, os.getpid()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Takes over from Lightning, which raises inside a step; it puts the former handlers back when it is done."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker that was forked with this handler has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.asked == signal.SIGINT:
            os.write(2, b"\nmmtrain: stopped at once; what was saved before is whole\n")
            os._exit(INTERRUPTED)
        if not self.asked:
            os.write(2, b"\nmmtrain: stopping behind this step, and saving (Ctrl-C again: at once)\n")
        self.asked = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.world_size > 1:
            asked = torch.tensor(self.asked)  # on the CPU: no step waits for the device
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            self.asked = int(asked)

    def raise_if_asked(self, step: int, folder: Any) -> None:
        """Raises Stopped once the run has saved and ended."""
        if self.asked:
            name = signal.Signals(self.asked).name
            status = INTERRUPTED if self.asked == signal.SIGINT else REQUEUE
            text = f"stopped by {name} behind step {step}, saved; go on with `mmtrain train --resume {folder}`"
            raise Stopped(text, status)
