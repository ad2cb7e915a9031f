"""A plan's phases for two towers in one space: encoding, and a step of the run's own objective, on the meta device.

The batch goes through the towers in as many pieces as in the run, with the towers' features from the cache where the
run has one; the loss is the run's, in its tiles.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain import config
from mmtrain.backbone import frozen
from mmtrain.backbone.aligned import AT_ONCE as CAPTIONS_AT_ONCE
from mmtrain.backbone.aligned import FEATURES, Aligned
from mmtrain.batch import Batch
from mmtrain.rng import Rng
from mmtrain.train.measure import Tally, measured

if TYPE_CHECKING:
    from mmtrain.train.plan import Plan, Settings

ENCODED = 8  # clips that are encoded at once (`train/fit.py`)
SCORED = 16  # pairs that are embedded at once for scores (`evaluate/embedded.py`)
MULTIPLIED = ((F, "linear"), (F, "conv2d"), (F, "conv3d"), (torch, "addmm"))
"""What mixed precision does in 16 bits, of what towers call."""


def parts(backbone: Aligned) -> dict[str, nn.Module]:
    """Towers by name, and what stands on top of them."""
    tops = nn.ModuleList([*backbone.over_time, *backbone.visual_top, *backbone.text_top])
    found: dict[str, nn.Module] = {"text tower": nn.ModuleList(backbone.text_tower)}
    found["visual tower"] = nn.ModuleList(backbone.visual_tower)
    return {**found, "on top of them": tops} if len(tops) else found


def side(backbone: Aligned) -> int:
    """Pixels of a side that the visual tower sees, where it says so; 64 elsewhere."""
    every = (part for tower in backbone.visual_tower for part in tower.modules())
    sides = (getattr(getattr(part, "config", None), "image_size", None) for part in every)
    return next((side for side in sides if isinstance(side, int)), 64)


def phases(made: "Plan", cfg: DictConfig, backbone: Aligned, held: int, state: int) -> None:
    """Fill in bytes of a plan's phases and operations of a step.

    Args:
        made: the plan.
        held: bytes of all weights.
        state: bytes that the optimizer and the moving average add.
    """
    made.frozen = sum(w.numel() for w in backbone.parameters() if not w.requires_grad)
    if cfg.get("cache") is not None:
        made.phases["encode"] = held + max(_seen(backbone, made.settings).peak, _read(backbone).peak)
    cost = step(cfg, backbone, made.settings)
    made.flops = cost.flops
    made.phases["step"] = held + state + cost.peak
    if cfg.get("preview") is not None:
        shown = replace(made.settings, batch_size=SCORED, ranks=1)
        made.phases["preview"] = held + state + max(_seen(backbone, shown).peak, _read(backbone).peak)


def step(cfg: DictConfig, backbone: Aligned, settings: "Settings") -> Tally:
    """What one training step costs beyond what is held: activations, gradients, operations."""
    objective = config.build(cfg.objective)
    _speak_in_shapes(backbone)
    if cfg.get("cache") is not None and backbone.text_is_frozen:
        captions = _captions(settings.share)
        backbone.recall(captions, torch.empty(len(captions), backbone.widths[0], device="meta"))
    made = _batch(cfg, backbone, settings)

    def work() -> None:
        batch = made()
        with mixed() if settings.sixteen else nullcontext():
            loss = objective(backbone, batch, Rng(0, 0, batch.positions), settings.pieces)
            (loss.per_sample.sum() / len(batch)).backward()

    cost = measured(work, outline=True)
    for weight in backbone.parameters():
        weight.grad = None
    return cost


@contextmanager
def mixed() -> Iterator[None]:
    """What mixed precision keeps, on the meta device, where torch has none: products take 16-bit copies of their input.

    The copy of a weight lives as long as its product's gradient is due, as it does in a run.
    """
    own = [getattr(place, name) for place, name in MULTIPLIED]
    convolved = frozen.lowered

    def lowered(product: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return product(*map(_low, args), **{name: _low(value) for name, value in kwargs.items()})

        return call

    for (place, name), product in zip(MULTIPLIED, own, strict=True):
        setattr(place, name, lowered(product))
    frozen.lowered = lambda *args: tuple(map(_low, args))
    try:
        yield
    finally:
        frozen.lowered = convolved
        for (place, name), product in zip(MULTIPLIED, own, strict=True):
            setattr(place, name, product)


def _low(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def _batch(cfg: DictConfig, backbone: Aligned, settings: "Settings") -> Callable[[], Batch]:
    """What makes a run's batch, of pixels or of what the cache holds of them."""
    count = settings.share
    captions = _captions(count)
    if cfg.get("cache") is None:
        return lambda: Batch(captions, list(range(count)), captions, _frames(settings))
    features = backbone.encode(_frames(replace(settings, batch_size=1, ranks=1)))[FEATURES].expand(count, -1, -1)
    return lambda: Batch(captions, list(range(count)), captions, None, {FEATURES: torch.empty_like(features)})


def _captions(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


def _frames(settings: "Settings") -> Tensor:
    return torch.empty(settings.share, settings.frames, 3, settings.height, settings.width, device="meta")


def _seen(backbone: Aligned, settings: "Settings") -> Tally:
    """The cost of encoding as many clips as are encoded at once."""
    frames = _frames(replace(settings, batch_size=min(ENCODED, settings.share), ranks=1))
    return measured(lambda: backbone.encode(frames), outline=True)


def _read(backbone: Aligned) -> Tally:
    """The cost of reading as many captions as are read at once."""
    _speak_in_shapes(backbone)

    @torch.no_grad()
    def work() -> None:
        backbone.text_features(*backbone.tokens(_captions(CAPTIONS_AT_ONCE)))

    return measured(work, outline=True)


def _speak_in_shapes(backbone: Any) -> None:
    """Captions become as many ids as they are padded to, whatever they say; the mask, which a language model looks at,
    is real."""

    def tokens(captions: list[str]) -> tuple[Tensor, Tensor]:
        shape = len(captions), int(backbone.tokenizer.model_max_length)
        return torch.zeros(shape, dtype=torch.int64, device="meta"), torch.ones(shape, dtype=torch.bool)

    backbone.tokens = tokens
