"""The one LightningModule: a frozen backbone, adapters that train, an objective. No arithmetic of any family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mmtrain.artifact import is_whole_backbone
from mmtrain.batch import Batch, Loss
from mmtrain.errors import UserError
from mmtrain.objective.whole import WholeBatch, pieces_of
from mmtrain.rng import Rng, droppers
from mmtrain.train import sharded
from mmtrain.train.optim import Rate


class TrainModule(pl.LightningModule):
    """Trains what the adapters choose.

    Args:
        backbone: frozen on arrival; the adapters are attached to it already.
        adapters: by name.
        objective: (backbone, batch, rng) → Loss.
        optim: optimizer and schedule.
        seed: of every draw.
        steps: of the whole run, in optimizer steps.
        ema: decay of the moving average of what trains, or None.
        clip: norm to which gradients are clipped.
        accumulate: in how many pieces a batch goes through the network; the gradients are those of the whole.

    Attributes:
        step: optimizer steps behind the run, those before a resume included.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        adapters: dict[str, Any],
        objective: Any,
        optim: Rate,
        seed: int,
        steps: int,
        ema: float | None = None,
        clip: float = 1.0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.adapters, self.objective, self.optim = backbone, nn.ModuleDict(adapters), objective, optim
        self.seed, self.step, self.steps, self.decay, self.clip = seed, 0, steps, ema, clip
        self.accumulate = accumulate
        self.weights = named_weights(adapters)
        if not self.weights:
            raise UserError("adapters", "none of them has a weight that trains", "at least one", "add an adapter")
        self.average = {name: w.detach().clone() for name, w in self.weights.items()} if ema is not None else None
        self.outcome: Loss | None = None
        self.droppers = droppers(backbone)
        self.is_cut = False
        self.optimizer: torch.optim.Optimizer | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """As any module; but the hook it is in, which Lightning notes forty times a step, is no weight to look for."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.optim.optimizer(self.weights)
        return self.optimizer

    def loss(self, batch: Batch) -> Loss:
        """The objective on a batch, with the draws of the step that is due."""
        rng = Rng(self.seed, self.step, batch.positions)
        if isinstance(self.objective, WholeBatch):
            return self.objective(self.backbone, batch, rng, self.accumulate)
        with rng.dropout() if any(part.training for part in self.droppers) else nullcontext():
            return self.objective(self.backbone, batch, rng)

    def mean_loss(self, batch: Batch, backward: Callable[[Tensor], object]) -> Tensor:
        """The loss of which the gradient is still to be taken; it sets ``outcome``.

        An objective that compares samples sees the whole batch and takes it in pieces itself. Of any other objective
        ``backward`` adds the gradients of all pieces but the last here: only a piece's activations are kept.
        """
        pieces = 1 if isinstance(self.objective, WholeBatch) else self.accumulate
        cut = pieces_of(len(batch), pieces) if pieces > 1 else []
        *before, last = [batch.part(places) for places in cut] or [batch]
        found = []
        for part in before:
            found.append(self.loss(part))
            backward(found[-1].per_sample.sum() / len(batch))
        found.append(self.loss(last))
        self.outcome = found[0] if not before else _joined(found)
        return found[-1].per_sample.sum() / len(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.optimizer is not None
        rate = self.optim.rate(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * rate
        self.optimizer.zero_grad()
        return self.mean_loss(batch, lambda loss: self.trainer.strategy.backward(loss, None))

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: by the time that Lightning calls this, gradients of pieces are there already."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def configure_model(self) -> None:
        """Cut the weights into pieces where the strategy has a mesh of devices to lay them on."""
        if self.device_mesh is None or self.is_cut:
            return
        whole, optimizer, self.is_cut = self.weights, self.optimizer, True
        self.weights = sharded.shard(self, whole, self.device_mesh["data_parallel"])
        if self.average is not None:
            self.average = {n: sharded.like(a, self.weights[n].data) for n, a in self.average.items()}
        if optimizer is not None:
            self.optimizer = self.optim.optimizer(self.weights)
            sharded.recut(self.optimizer, self.weights, {n: optimizer.state[w] for n, w in whole.items()})

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip ourselves: Lightning refuses a fused optimizer under mixed precision. With fp16 the gradients are still
        scaled here, because a fused step takes the scale away itself."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        limit = self.clip * (scaler.get_scale() if scaler is not None else 1.0)
        if self.is_cut:
            sharded.clip(self.weights, limit)
        else:
            nn.utils.clip_grad_norm_(list(self.weights.values()), limit)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.step += 1
        if self.average is not None and self.decay is not None:
            rate = min(self.decay, self.step / (10 + self.step))  # short memory while young
            pairs = [(self.average[name], weight.detach()) for name, weight in self.weights.items()]
            for kind in {type(average) for average, _ in pairs}:  # pieces and whole tensors cannot go together
                average, weights = zip(*[pair for pair in pairs if type(pair[0]) is kind], strict=True)
                torch._foreach_lerp_(average, weights, 1 - rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average, as an export has them; outside, they are as before."""
        if self.average is None:
            yield
            return
        kept = {name: w.detach().clone() for name, w in self.weights.items()}
        for name, w in self.weights.items():
            w.data.copy_(self.average[name])
        try:
            yield
        finally:
            for name, w in self.weights.items():
                w.data.copy_(kept[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        raise AssertionError("checkpoints are written by train/checkpoint.py, never pickled")


def named_weights(adapters: dict[str, Any]) -> dict[str, nn.Parameter]:
    """What trains, by ``<adapter>/<weight>``."""
    return {f"{name}/{key}": w for name, adapter in adapters.items() for key, w in adapter.named_weights().items()}


def train_what_trains(backbone: nn.Module, adapters: dict[str, Any]) -> None:
    """Training mode, and so dropout, for adapters and for a network that trains as a whole; none for frozen layers, nor
    for a frozen encoder beside such a network, whose chance answers would be remembered."""
    whole = is_whole_backbone(adapters)
    backbone.eval()
    backbone.training = whole
    backbone.network.train(whole)  # type: ignore[union-attr]
    for adapter in adapters.values():
        adapter.train()


def _joined(parts: list[Loss]) -> Loss:
    """The losses of pieces as that of a batch, without gradients."""
    count = sum(len(part.per_sample) for part in parts)
    weights = torch.tensor([len(part.per_sample) / count for part in parts])
    return Loss(
        torch.cat([part.per_sample.detach() for part in parts]),
        {name: _known_mean(torch.stack([part.logs[name] for part in parts]), weights) for name in parts[0].logs},
    )


def _known_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of ``values [n]`` that are numbers: a piece may have no sample of some noise level."""
    known = ~values.isnan()
    weights = weights.to(values) * known
    return (values.nan_to_num() * weights).sum() / weights.sum()
