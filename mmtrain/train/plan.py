"""The plan of a run before it: what trains, bytes of each phase, operations and time of a step, disk, epochs.

Read off the run's own code: backbone, adapters and one step are done on the meta device, where nothing is computed and
no weight is needed. What is known of time is a range, by the device's data sheet.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mmtrain import config
from mmtrain.artifact import attached
from mmtrain.backbone.aligned import Aligned
from mmtrain.backbone.codec import in_portions
from mmtrain.backbone.outline import outlined
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.train import plan_alignment, sharded
from mmtrain.train.devices import SHARES, Device
from mmtrain.train.encode import encoders
from mmtrain.train.held import hold, idle, in_32_bits
from mmtrain.train.lighten import lighten
from mmtrain.train.measure import Tally, measured
from mmtrain.train.module import named_weights
from mmtrain.train.schedule import Fit

ENCODED = 8  # clips that are encoded at once (`train/fit.py`)
BESIDE = 3300  # bytes of a sample in a cache's tar besides its numbers: three heads, caption, facts, padding
SPARE = 0.94  # of a device's memory, what is left when its own libraries have taken theirs


@dataclass(frozen=True)
class Settings:
    """What a step's cost depends on besides the model.

    Attributes:
        batch_size: samples of a step, all devices and pieces together.
        pieces: in how many a device's share goes through the network.
        ranks: devices that share a batch evenly, on all machines.
    """

    batch_size: int
    frames: int
    height: int
    width: int
    sixteen: bool
    pieces: int = 1
    ranks: int = 1

    @property
    def share(self) -> int:
        """Samples of a step on one device."""
        return self.batch_size // self.ranks

    @property
    def piece(self) -> int:
        """Samples of the largest piece (`objective/whole.py`: `pieces_of`)."""
        return -(-self.share // self.pieces)


@dataclass
class Plan:
    """A run in numbers; bytes on each of its devices unless said otherwise.

    Attributes:
        parts: weights of each part of the backbone.
        trainable, frozen: weights.
        phases: bytes at the worst moment of each.
        flops: of one step on one device, or 0 where the family has no outline of a step.
        samples: of the data set, or None where it is not there yet.
        disk: what is written.
    """

    settings: Settings
    steps: int
    parts: dict[str, int]
    trainable: int
    frozen: int
    phases: dict[str, int] = field(default_factory=dict)
    flops: int = 0
    samples: int | None = None
    disk: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def outline(cfg: DictConfig) -> tuple[Any, dict[str, nn.Parameter]]:
    """Backbone with its adapters on the meta device, and what trains by ``<adapter>/<weight>``.

    Raises:
        UserError: what attaching refuses, and a hub id of which nothing is known.
    """
    with outlined(), torch.random.fork_rng(devices=[]):
        backbone = config.build(cfg.backbone).to("meta")
        adapters = attached(backbone, cfg.adapters)
    for adapter in adapters.values():
        adapter.to("meta")
    backbone.to("meta")
    return backbone, named_weights(adapters)


def asked(cfg: DictConfig) -> dict[str, nn.Module]:
    """The frozen networks that an objective asks besides the backbone, such as a teacher, on the meta device.

    Raises:
        UserError: what the objective refuses, and a hub id of which nothing is known.
    """
    with outlined(), torch.random.fork_rng(devices=[]):
        objective = config.build(cfg.objective)
    named = objective.named_children() if isinstance(objective, nn.Module) else []
    return {name: part.to("meta") for name, part in named}


def plan(cfg: DictConfig) -> Plan:
    """The plan of a checked config.

    Raises:
        UserError: a resolution, a number of frames or a target that the model cannot take, values of the objective
            that contradict each other, or an optimizer of whole weights where they lie in pieces; before anything is
            loaded.
    """
    backbone, weights = outline(cfg)
    schedule: Fit = config.build(cfg.trainer)
    lighten(backbone, schedule)
    hold(backbone, schedule)
    if schedule.strategy == "fsdp" and schedule.devices * schedule.num_nodes > 1:
        config.build(cfg.optim).check_pieces()
    source = _source(cfg)
    settings = _settings(cfg, backbone, source)
    trainable = sum(w.numel() for w in weights.values())
    networks = models(backbone)
    parts = {name: sum(w.numel() for w in part.parameters()) for name, part in networks.items()}
    own = {id(w) for w in weights.values()}
    still = sum(w.numel() for part in networks.values() for w in part.parameters() if id(w) not in own)
    beside = asked(cfg)
    parts |= {f"objective.{name}": sum(w.numel() for w in part.parameters()) for name, part in beside.items()}
    still += sum(w.numel() for part in beside.values() for w in part.parameters())
    made = Plan(settings, cfg.trainer.steps, parts, trainable, still)
    made.samples = None if source is None else len(source)
    _phases(made, cfg, backbone, weights, sum(_bytes(part) for part in beside.values()))
    _disk(made, cfg, backbone)
    return made


def models(backbone: Any) -> dict[str, nn.Module]:
    """The backbone's networks by name; adapters inside them are counted where they stand."""
    if isinstance(backbone, Aligned):
        return plan_alignment.parts(backbone)
    if hasattr(backbone, "parts"):
        return {name: part for name, part in backbone.parts().items() if isinstance(part, nn.Module)}
    return {name: part for name, part in backbone.named_children() if name != "bridge"}


def _source(cfg: DictConfig) -> Source | None:
    """The data set, if it is a folder of shards that is there: nothing is packed or fetched for a plan."""
    node = cfg.dataset
    if node.get("_target_") != "mmtrain.data.source.Source" or not Path(str(node.shards)).exists():
        return None
    source: Source = config.build(node)
    return source


def _settings(cfg: DictConfig, backbone: Any, source: Source | None) -> Settings:
    height, width = getattr(backbone, "size", (64, 64))
    if isinstance(backbone, Aligned):
        height = width = plan_alignment.side(backbone)
    frames = cfg.dataset.get("num_frames") or getattr(backbone, "num_frames", None) or 1
    if source is not None and source.kind != "encoded":
        frames, height, width, _ = source.sample(0).frames.shape
    elif cfg.dataset.get("buckets"):
        buckets = config.build(cfg.dataset.buckets)  # of one area all: the longest is the worst
        (width, height), frames = buckets.sizes[-1], buckets.lengths[-1]
    elif cfg.dataset.get("size"):
        height = width = int(cfg.dataset.size)
    unit = getattr(backbone, "multiple", 1)
    if height % unit or width % unit:
        near = f"{max(1, round(height / unit)) * unit} × {max(1, round(width / unit)) * unit}"
        wanted = f"multiples of {unit}, by this model's codec"
        raise UserError("dataset.size", f"{height} × {width} pixels", wanted, f"try {near}")
    if hasattr(backbone, "check_frames"):
        backbone.check_frames(int(frames))
    trainer = cfg.trainer
    sixteen = str(trainer.get("precision", "32-true")) != "32-true"
    ranks = int(trainer.get("devices", 1)) * int(trainer.get("num_nodes", 1))
    if trainer.batch_size % ranks:
        wanted = f"a batch that {ranks} devices share evenly"
        raise UserError("trainer.batch_size", str(trainer.batch_size), wanted, f"give a multiple of {ranks}")
    pieces = min(int(trainer.get("accumulate", 1)), int(trainer.batch_size) // ranks)
    return Settings(int(trainer.batch_size), int(frames), height, width, sixteen, pieces, ranks)


# phases ---------------------------------------------------------------------------------------------------------------


def _phases(made: Plan, cfg: DictConfig, backbone: Any, weights: dict[str, nn.Parameter], besides: int) -> None:
    """``besides``: bytes of the networks that the objective asks, which no device shares."""
    inside = {id(w) for w in backbone.parameters()}
    beside = sum(w.numel() * w.element_size() for w in weights.values() if id(w) not in inside)
    own = 4 * made.trainable
    state = own * (cfg.trainer.get("ema") is not None) + config.build(cfg.optim).bytes_each * made.trainable
    held = read = made.phases["load"] = _bytes(backbone) + beside + besides
    ranks = made.settings.ranks if cfg.trainer.get("strategy") == "fsdp" else 1
    if ranks > 1:
        held = sharded.held(backbone, ranks) + -(-beside // ranks) + sharded.gathered(backbone) + besides
        state = -(-state // ranks)
        if cfg.trainer.accelerator != "cpu":  # weights come to the device layer by layer, and copies of encoders before
            made.phases["load"] = held
            read = sum(_bytes(part) for name in encoders(backbone) if (part := getattr(backbone, name)) is not None)
            read += besides
    if isinstance(backbone, Aligned):
        plan_alignment.phases(made, cfg, backbone, held, state)
    if hasattr(backbone, "vae"):
        clips = ENCODED if cfg.get("cache") else made.settings.piece
        seen = _codec(backbone, made.settings, clips, decode=False).peak
        made.phases["encode"] = seen + (read if cfg.get("cache") else held)
    held -= sum(sharded.held(getattr(backbone, name), ranks) for name in idle(cfg, backbone))
    if hasattr(backbone, "example"):
        cost = step(backbone, made.settings)
        made.flops = cost.flops
        made.phases["step"] = held + state + cost.peak
        if cfg.get("preview") is not None:
            made.phases["preview"] = held + state + _preview(backbone, made.settings, len(cfg.preview.prompts))
    made.phases["save"] = held + state  # files are written from what is there


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def step(backbone: Any, settings: Settings) -> Tally:
    """What one training step costs beyond what is held: activations, gradients, operations; in mixed precision also
    the copies that it makes of weights.

    From the second piece on the gradients of those before are held too: two are done, and stand for all.
    """
    done = min(settings.pieces, 2)

    def work() -> None:
        for _ in range(done):
            given = backbone.example(settings.piece, settings.frames, settings.height, settings.width)
            with plan_alignment.mixed() if settings.sixteen else nullcontext():
                error = backbone.predict(*given) - torch.empty_like(given[0])
                torch.autograd.backward(error.square().flatten(1).mean(1).mean())

    cost = measured(work, outline=True)
    cost.flops = cost.flops * settings.share // (done * settings.piece)
    backbone.network.zero_grad()
    return cost


def _codec(backbone: Any, settings: Settings, clips: int, *, decode: bool) -> Tally:
    """The codec's cost of encoding pixels or decoding latents of some clips."""
    codec, frames = backbone.vae, settings.frames if getattr(backbone, "makes", "") == "video" else 1
    pixels: Tensor = torch.empty(clips * frames, 3, settings.height, settings.width, device="meta")
    over_time = "Wan" in type(codec).__name__
    pixels = pixels.unflatten(0, (clips, frames)).transpose(1, 2) if over_time else pixels

    @torch.no_grad()
    def work() -> None:
        if not decode:
            for part in [pixels] if over_time else in_portions(pixels):
                codec.encode(part)
            return
        latents = torch.empty_like(codec.encode(pixels[:1]).latent_dist.mean).expand(len(pixels), *[-1] * 3)
        codec.decode(latents, **({"num_frames": frames} if "Temporal" in type(codec).__name__ else {}))

    if decode and over_time:
        return _decoded_over_time(codec, pixels)
    return measured(work, outline=True)


def _decoded_over_time(codec: Any, pixels: Tensor) -> Tally:
    with torch.no_grad():
        latents = codec.encode(pixels).latent_dist.mean
        return measured(lambda: codec.decode(latents), outline=True)


def _preview(backbone: Any, settings: Settings, prompts: int) -> int:
    """Bytes of sampling some prompts at once with guidance: a folded copy of the network, then the worse of a step of
    twice that many samples and of decoding them."""
    network = sum(4 * w.numel() for w in backbone.network.parameters())

    @torch.no_grad()
    def work() -> None:
        given = backbone.example(2 * prompts, settings.frames, settings.height, settings.width)
        backbone.predict(*given)

    decoding = _codec(backbone, settings, prompts, decode=True).peak if hasattr(backbone, "vae") else 0
    with in_32_bits(backbone.network):
        return network + max(measured(work, outline=True).peak, decoding)


# disk and words -------------------------------------------------------------------------------------------------------


def _disk(made: Plan, cfg: DictConfig, backbone: Any) -> None:
    copies = 1 + (cfg.trainer.get("ema") is not None) + config.build(cfg.optim).bytes_each / 4
    made.disk["checkpoints"] = int((cfg.trainer.get("keep", 1) + 1) * 4 * made.trainable * copies)
    if cfg.get("cache") and made.samples is not None and hasattr(backbone, "encoded_size"):
        numbers = backbone.encoded_size(made.settings.frames, made.settings.height, made.settings.width)
        made.disk["cache"] = made.samples * (2 * numbers + BESIDE)  # in 16 bits


def what_fits(cfg: DictConfig, made: Plan, device: Device) -> Settings | None:
    """The settings nearest to those asked for whose step fits a device; None if the plan's own does, or none does."""
    room = SPARE * device.memory
    if made.phases.get("step", 0) <= room or made.phases["load"] > room:
        return None
    backbone, _ = outline(cfg)
    schedule: Fit = config.build(cfg.trainer)
    lighten(backbone, schedule)
    hold(backbone, schedule)
    if isinstance(backbone, Aligned):
        cost = partial(plan_alignment.step, cfg, backbone)
    else:
        cost = partial(step, backbone)
    beyond = made.phases["step"] - cost(made.settings).peak
    return next((s for s in _nearer(made.settings) if beyond + cost(s).peak <= room), None)


def _nearer(asked: Settings) -> Iterator[Settings]:
    """From little changed to much: 16 bits, then ever more pieces with them; the gradients stay those of the batch."""
    pieces = asked.pieces
    while pieces < asked.share:
        yield replace(asked, pieces=pieces, sixteen=True)
        pieces *= 2
    yield replace(asked, pieces=asked.share, sixteen=True)


def words(made: Plan, device: Device, fit: Settings | None = None) -> list[str]:
    """The plan in lines.

    Args:
        made: the plan.
        device: that it is for.
        fit: settings whose step would fit, where the plan's does not.
    """
    s = made.settings
    lines = [f"weights: {made.trainable:,} train, {made.frozen:,} are frozen"]
    lines += [f"  {name}: {count:,}" for name, count in made.parts.items()]
    shape = f"{s.share} × {s.frames} frames of {s.height} × {s.width}"
    shape += f" in {s.pieces} pieces" if s.pieces > 1 else ""
    shape += f" on each of {s.ranks} devices" if s.ranks > 1 else ""
    lines.append(f"memory at {shape}, {'mixed 16' if s.sixteen else '32'} bits:")
    lines += [f"  {name}: {_size(count)}" for name, count in made.phases.items()]
    limit = SPARE * device.memory
    over = [name for name, count in made.phases.items() if count > limit]
    enough = f"too little for {', '.join(over)}" if over else "enough"
    lines.append(f"  {device.name} has {_size(device.memory)}: {enough}")
    if over:
        lines.append(f"  {_advice(s, fit, over)}")
    if made.flops:
        lines.append(_time(made, device))
    if made.samples is not None:
        seen = made.steps * s.batch_size / max(1, made.samples)
        lines.append(f"epochs: {seen:.3g} of {made.samples:,} samples")
    else:
        lines.append("epochs: not known, the data is not there yet")
    lines.append("disk: " + ", ".join(f"{name} {_size(count)}" for name, count in made.disk.items()))
    return lines


def _advice(asked: Settings, fit: Settings | None, over: list[str]) -> str:
    if "load" in over:
        return "the weights alone do not fit: choose a larger device, or for a denoiser trainer.frozen_bits=16"
    if fit is None:
        more = "trainer.checkpointing=true, trainer.frozen_bits=16 with mixed precision"
        return f"neither pieces nor precision makes it fit: try {more}, or a larger device"
    changed: dict[str, str] = {}
    if fit.pieces != asked.pieces:
        changed["trainer.accumulate"] = str(fit.pieces)
    if fit.sixteen and not asked.sixteen:
        changed["trainer.precision"] = "bf16-mixed"
    return "its step would fit with " + " ".join(f"{name}={value}" for name, value in changed.items())


def _time(made: Plan, device: Device) -> str:
    peak = device.flops_16 if made.settings.sixteen else device.flops_32
    slow, fast = (made.flops / (share * peak) for share in SHARES)
    if slow < 1e-3:
        return f"time: {made.flops / 1e9:.3g} GFLOP a step: less than starting them takes; the data sets the pace"
    total = f"{_duration(fast * made.steps)} to {_duration(slow * made.steps)} for {made.steps:,} steps"
    ranks = made.settings.ranks
    many = f" on each of {ranks} devices" if ranks > 1 else ""
    others = [name for name in made.parts if name.startswith("objective.")]
    besides = f"; {' and '.join(others)} not counted" if others else ""
    return (
        f"time: {made.flops / 1e12:.3g} TFLOP a step{many}; on {device.name} at {SHARES[1]:.0%} to {SHARES[0]:.0%} of "
        f"its {peak / 1e12:.3g} TFLOP/s {fast:.3g} to {slow:.3g} s a step, {total}{besides}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def plain(made: Plan) -> dict[str, Any]:
    """The plan's numbers, for a file."""
    return {**{k: v for k, v in vars(made).items() if k != "settings"}, "settings": vars(made.settings)}
