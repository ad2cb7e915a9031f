"""Which run a call of `fit` is: a new one, or one that goes on, and whether it is still the same."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.markup import escape

from mmtrain.data.stream import Stream
from mmtrain.errors import UserError
from mmtrain.run import Run, checkpoints, code_version, differences, identity, is_allowed, resolved
from mmtrain.train.voice import Voice

AUTO = "auto"
"""``--resume auto``: go on with the newest run of the same identity, or start one."""


@dataclass(frozen=True)
class Ask:
    """What the shell asks of one call of `fit` besides the config; none of it belongs to the run's identity.

    Attributes:
        resume: a run's folder, to go on from its newest whole checkpoint; ``auto``; or None for a new run.
        allow: keys, and nodes of them, in which the resumed run may differ from what it was.
        until: the step behind which to stop early, with a checkpoint; None: the config's last.
        wanted: ``data`` and ``bases`` of a manifest: a new run on others is refused.
        facts: for a new run's manifest, besides what it always holds.
    """

    resume: Path | str | None = None
    allow: Collection[str] = ()
    until: int | None = None
    wanted: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As JSON holds it, for another process."""
        resume = {"folder": str(self.resume)} if isinstance(self.resume, Path) else self.resume
        return {**vars(self), "resume": resume, "allow": list(self.allow)}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Ask":
        """What `told` gave."""
        resume = told["resume"]
        return cls(**{**told, "resume": Path(resume["folder"]) if isinstance(resume, dict) else resume})


def taken_up(cfg: DictConfig, source: Stream, backbone: Any, ask: Ask, voice: Voice) -> tuple[str, int | None]:
    """The run's folder, and the step of the checkpoint that it goes on from."""
    data, bases = source.fingerprint, {"backbone": backbone.base}
    resume = ask.resume
    if resume == AUTO:
        same = Run.same(identity(resolved(cfg), data), cfg.folder)
        started = same is not None and checkpoints.listed(same.path / "checkpoints")
        resume = same.path if same is not None and started else None
    if resume is None:
        if ask.wanted is not None:
            _same_ground(ask.wanted, data, bases)
        run = Run.start(cfg, cfg.folder, data=data, bases=bases, facts=ask.facts)
        voice.into(run.path / "log.txt")
        return str(run.path), None
    run = Run.open(resume)
    voice.into(run.path / "log.txt")
    newest = checkpoints.newest(run.path / "checkpoints", say=lambda text: voice(escape(text)))
    changed = run.not_the_same(cfg, data, bases)
    _refuse(run, changed, ask.allow)
    step = checkpoints.step_of(newest)
    if changed:
        run.go_on_as(cfg, changed, step, code_version())
    return str(run.path), step


def _same_ground(wanted: Mapping[str, Any], data: str, bases: Mapping[str, Any]) -> None:
    """The data and the frozen weights are those of a manifest. Raises UserError naming each that is not."""
    others = [] if wanted["data"] == data else [f"data {data[:16]}, {wanted['data'][:16]} then"]
    for name, base in wanted["bases"].items():
        if bases[name]["digest"] != base["digest"]:
            others.append(f"{name} {bases[name]['digest'][:16]}, {base['digest'][:16]} then")
    if others:
        fix = "say where they lie now, by key=value"
        raise UserError("fingerprints", "; ".join(others), "the data and weights of the run", fix)


def refuse_early(run: Run, cfg: DictConfig, allow: Collection[str]) -> None:
    """Before any weight is loaded."""
    changed = differences(run.manifest["config"], resolved(cfg))
    if run.manifest["code"] != code_version():
        changed["code"] = (run.manifest["code"], code_version())
    _refuse(run, changed, allow)


def _refuse(run: Run, changed: dict[str, tuple[Any, Any]], allow: Collection[str]) -> None:
    others = {key: pair for key, pair in changed.items() if not is_allowed(key, allow)}
    if others:
        came = "; ".join(f"{key}: {ours!r} then, {theirs!r} now" for key, (ours, theirs) in others.items())
        words = " ".join(f"--allow {key}" for key in others)
        raise UserError(str(run.path), came, "the identity of the run", f"start a new run, or say `{words}`")
