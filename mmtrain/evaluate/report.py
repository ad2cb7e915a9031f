"""One self-contained HTML page about a run: what its evaluation shows, its clips, its curves, how to do it again.

Gathers and writes; the page's parts are `page.py`, its looks `page.html`, its curves `curves.py`. It computes no number
of its own. Nothing on the page is fetched from anywhere.
"""

import os
import shlex
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import yaml

from mmtrain.config.recipe import BACKBONES
from mmtrain.errors import UserError
from mmtrain.evaluate import aligned_page, curves, outcome, page
from mmtrain.objective.contrastive import Contrastive
from mmtrain.objective.siglip import SigLIP
from mmtrain.run import Run

TEMPLATE = Path(__file__).with_name("page.html")
_WEIGHTS = {"trainable": "trained", "frozen": "frozen"}
_COMPARE = [f"{each.__module__}.{each.__name__}" for each in (Contrastive, SigLIP)]
_MARK = '<meta name="generator" content="mmtrain report">'


def report(run: str, *, evaluation: Path | None, out: Path | None, folder: str = "runs") -> Path:
    """Write the page and return its file.

    Args:
        run: a run's folder, the start of its id, or ``latest``.
        evaluation: a folder that `evaluate` wrote. None: the newest one of this run under ``evaluations/``, and a page
            without numbers where there is none.
        out: the file. None: ``reports/<run>.html``. An earlier report there is replaced, any other file is not.

    Raises:
        UserError: no such run, an evaluation of another run, a file in the way.
    """
    found = Run.find(run, folder)
    target = out if out is not None else Path("reports") / f"{found.path.name}.html"
    _refuse_others(target)
    place = evaluation if evaluation is not None else _newest(found)
    evaluated = outcome.read(place) if place is not None else None
    if evaluated is not None and evaluated["artifact"]["run_id"] != found.run_id:
        raise UserError(
            f"--evaluation {place}",
            f"it is of the run {evaluated['artifact']['run_id'][:8]}",
            f"one of the run {found.run_id[:8]}",
            "name the run that it belongs to, or evaluate this one",
        )
    replace_report(target, render(found, evaluated, place))
    return target


def replace_report(target: Path, text: str) -> None:
    """Write a page in one piece. Raises UserError if the file there is no report."""
    _refuse_others(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def render(run: Run, evaluated: dict[str, Any] | None, place: Path | None) -> str:
    """The page."""
    manifest, metrics = run.manifest, run.path / "metrics.csv"
    drawn = curves.read(metrics) if metrics.is_file() else {}
    if (heldout := run.path / "heldout.csv").is_file():
        named = list(drawn.items())
        drawn = dict([*named[:1], *((f"{name} held out", c) for name, c in curves.read(heldout).items()), *named[1:]])
    parts = [page.head(manifest, evaluated, max((c[0][-1] for c in drawn.values()), default=None))]
    if evaluated is not None and place is not None:
        shown = aligned_page.parts if "alignment" in evaluated else page.parts
        parts += shown(evaluated, place)
    else:
        parts.append(page.not_evaluated(_aligns(manifest)))
    parts.append(page.training(drawn))
    parts.append(page.again(_commands(manifest, evaluated)))
    parts.append(page.circumstances(_circumstances(manifest, evaluated), _neutral(_yaml(manifest["config"]))))
    parts.append(page.foot(evaluated))
    title = escape(f"{manifest['name']} · {run.run_id[:8]} · mmtrain")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=title, body="\n".join(parts))


def _aligns(manifest: dict[str, Any]) -> bool:
    """Whether a run compared the pairs of a batch."""
    return manifest["config"]["objective"]["_target_"] in _COMPARE


def _refuse_others(target: Path) -> None:
    """Only a report is replaced."""
    if not target.exists():
        return
    if not target.is_file() or _MARK not in target.read_text(encoding="utf-8", errors="replace")[:2000]:
        wanted = "a new file, or a report to replace"
        raise UserError(str(target), "the output exists", wanted, "name another with --out")


def _newest(run: Run, folder: str = "evaluations") -> Path | None:
    """The newest evaluation of a run; None where there is none."""
    known = [(outcome.read(file.parent), file.parent) for file in Path(folder).glob("*/evaluation.json")]
    mine = [(each["made"], place) for each, place in known if each["artifact"]["run_id"] == run.run_id]
    return max(mine)[1] if mine else None


def _commands(manifest: dict[str, Any], evaluated: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Commands with what is to be said of each."""
    git, said = manifest["git"], []
    if git is not None:
        changed = "; tracked files differed from it" if git["dirty"] else ""
        said.append((f"git checkout {git['commit']}", f"the code{changed}"))
    said.append((_command(manifest["command"]), "the training"))
    if evaluated is not None:
        said.append((_command(evaluated["command"]), "the comparison"))
    return said


def _command(words: list[str]) -> str:
    return _neutral(f"mmtrain {shlex.join(words[1:])}")


def _circumstances(manifest: dict[str, Any], evaluated: dict[str, Any] | None) -> dict[str, str]:
    """What a reader who doubts a number asks for."""
    hardware, git = manifest["hardware"], manifest["git"]
    cards = ", ".join(hardware["gpus"]) or "no graphics card"
    threads = manifest.get("threads", hardware["threads"])
    facts = {
        "Run": manifest["run_id"],
        "Started": manifest["started"],
        "Seed": str(manifest["seed"]),
        "Data": manifest["data"],
        "Bases": "; ".join(f"{name} {_neutral(b['path'])} {b['digest'][:16]}" for name, b in manifest["bases"].items()),
        "Samples replaced": _replaced(manifest["replaced"]) if "replaced" in manifest else "",
        "Weights": ", ".join(f"{manifest[k]:,} {word}" for k, word in _WEIGHTS.items() if k in manifest),
        "Code": manifest["code"],
        "Git": f"{git['commit']}{', tracked files changed' if git['dirty'] else ''}" if git is not None else "",
        "Hardware": f"{hardware['cpu']}, {hardware['cores']} cores of which {threads} in use; {cards}",
        "Versions": ", ".join(f"{k} {v}" for k, v in {"python": manifest["python"], **manifest["packages"]}.items()),
    }
    if evaluated is not None:
        settings = {"seed": evaluated["seed"], **evaluated["settings"], "prompts": evaluated["prompts_from"]}
        told = {name: _neutral(str(value)) for name, value in settings.items() if value not in (None, "")}
        step, seconds = evaluated["artifact"]["step"], evaluated["seconds"]
        facts["Evaluated"] = f"{evaluated['made']}, step {step}, in {seconds:.0f} s"
        facts["Sampling"] = ", ".join(f"{name} {value}" for name, value in told.items())
    return {name: value for name, value in facts.items() if value}


def _replaced(counts: dict[str, dict[str, int]]) -> str:
    """Of each shard, how many samples another stood for, and why."""
    kinds = (f"{shard}: {', '.join(f'{n} {kind}' for kind, n in found.items())}" for shard, found in counts.items())
    return "; ".join(kinds) or "none"


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)


def _neutral(text: str) -> str:
    """Without the folders of this machine: a page travels."""
    for known, word in ((f"{BACKBONES}/", "shipped:"), (f"{Path.cwd()}/", ""), (f"{Path.home()}/", "~/")):
        text = text.replace(known, word)
    return text
