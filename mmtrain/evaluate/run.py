"""Base against adapted on the same prompts, seeds and first frames: clips, numbers per clip, and one table.

Writes a folder with ``clips/*.mp4``, ``sheet.png`` and ``evaluation.json``, whole or not at all. What is asked is
`cases.py`, who answers `arms.py`, what is measured one file per metric, the page `report.py`.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape

from mmtrain import artifact, config
from mmtrain.config.gate import parse
from mmtrain.config.recipe import CONF
from mmtrain.data import world
from mmtrain.data.shards import refuse_existing
from mmtrain.errors import UserError
from mmtrain.evaluate import cases as asked
from mmtrain.evaluate import table
from mmtrain.evaluate.arms import WAYS, FirstFrames, Model, Settings, arms, check_ways, usual_ways
from mmtrain.evaluate.cases import Against, Case, Chunked, Numbers, OfSet, Prepared
from mmtrain.evaluate.embedded import EmbeddingMetric
from mmtrain.evaluate.gates import judged, lines, refuse_silent, told
from mmtrain.evaluate.outcome import VERSION
from mmtrain.evaluate.progress import Progress
from mmtrain.evaluate.sets import Sets
from mmtrain.evaluate.sheet import sheet
from mmtrain.evaluate.table import ARMS
from mmtrain.run import code_version, git_state, hardware, versions, write_json
from mmtrain.sample.mp4 import write_mp4, write_png

_ON_SHEET = 12  # prompts on the contact sheet

Metrics = Mapping[str, Callable[[np.ndarray, Case], Numbers] | Against | OfSet]


def evaluate(
    folder: Path,
    *,
    prompts_from: str,
    count: int,
    two_objects: int,
    motions: Mapping[str, float] | None = None,
    ways: Sequence[str] | None,
    metrics: Sequence[str],
    settings: Settings,
    seed: int,
    batch: int,
    out: Path | None,
    gates: Sequence[str] = (),
    words: str | None = None,
    neutral: bool = False,
    seeds: int = 1,
    reference: str | None = None,
) -> Path:
    """Compare an artifact with its own base and print the table.

    Args:
        folder: the artifact.
        prompts_from: ``heldout`` for scenes of the world that training never saw, else a file of prompts.
        count, two_objects: held-out prompts of one object and of two.
        motions: shares of held-out objects, as `world.scene` takes them.
        ways: of making a video, from ``WAYS``; each is done and told by itself. None: the model's usual one.
        metrics: names in ``conf/metric/``.
        settings: of sampling, alike for both.
        seed: of scenes, wordings, noise and resampling.
        batch: clips made at once.
        out: folder to write; None: ``evaluations/<artifact>``.
        gates: lines of `gates.py`; what each found is told and kept, passed or not.
        words, neutral: as `cases.around` takes them.
        seeds: clips of each prompt by each model; a prompt counts once, with the mean of its numbers.
        reference: shards of pictures that metrics compare with.

    Returns:
        The folder.

    Raises:
        UserError: what was asked cannot be done; or, with the folder written, a gate that nothing answers.
    """
    wanted = [parse(gate) for gate in gates]
    facts = artifact.read(folder)
    target = out if out is not None else Path("evaluations") / folder.resolve().name
    refuse_existing(target)
    chosen = {name: metric(name, reference) for name in metrics}
    cases = asked.around(_cases(prompts_from, count, two_objects, motions, seed), words, neutral)
    cases = asked.seeded(cases, seeds)
    sets = Sets(chosen)
    ways = usual_ways(folder) if ways is None else ways
    _check_ways(ways, cases)
    check_ways(folder, ways)
    for each in chosen.values():
        if isinstance(each, Prepared):
            each.prepare(cases)
    started = time.perf_counter()
    with staged(target) as staging:
        (staging / "clips").mkdir()
        with Progress(2 * len(ways) * len(cases)) as progress:
            clips = compare(
                cases,
                ways,
                models=arms(folder, settings.of(folder), cases),
                first_frames=FirstFrames(settings),
                metrics=chosen,
                batch=batch,
                folder=staging,
                tags={"ai_generated": True, **{name: facts[name] for name in ("run_id", "step")}},
                progress=progress,
                sets=sets,
            )
        lower = [name for m in chosen.values() for name in getattr(m, "lower_is_better", ())]
        found = {
            "version": VERSION,
            "artifact": {n: facts[n] for n in ("name", "run_id", "step", "base", "data")},
            "seconds": round(time.perf_counter() - started, 1),
            "seed": seed,
            "prompts_from": prompts_from,
            "words": words,
            "reference": reference,
            "ways": list(ways),
            "metrics": list(metrics),
            "settings": asdict(settings.of(folder)),
            **circumstances(),
            "table": [*table.aggregate(clips, seed=seed, lower_is_better=lower), *sets.rows(seed)],
            "clips": clips,
        }
        found["gates"] = told(judged(wanted, found["table"]))
        write_json(staging / "evaluation.json", found)
    show(found)
    refuse_silent(wanted, found["table"])
    return target


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end; if anything is raised, nothing remains."""
    staging = target.absolute().with_name(f".{target.name}.staging-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        refuse_existing(target)
        if target.is_dir():
            target.rmdir()
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


_WIDE = 100


def show(found: Mapping[str, Any]) -> None:
    """Print the tables: whole into a pipe or file, which has no width of its own."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDE
    for each in table.for_terminal(found["table"]):
        console.print(each)
    for line in lines(found.get("gates", ())):  # older evaluations have none
        console.print(escape(line), style="red" if line.startswith("FAILED") else "green")


def compare(
    cases: Sequence[Case],
    ways: Sequence[str],
    *,
    models: Iterable[tuple[str, Model]],
    first_frames: Callable[[str, str, Sequence[Case], tuple[int, int]], np.ndarray | None],
    metrics: Metrics,
    batch: int,
    folder: Path,
    tags: Mapping[str, Any],
    progress: Progress,
    sets: Sets | None = None,
) -> list[dict[str, Any]]:
    """Both models' clips of each way and case, written and measured: one entry per way and case.

    Args:
        cases: what is asked.
        ways: how; the first fills the contact sheet.
        models: by name, one after the other, so that only one need be in memory.
        first_frames: of a model's name, a way, cases and a size: uint8 ``[b h w c]``, or None for none.
        metrics: what is measured, by name.
        batch: clips made at once.
        folder: where ``clips/`` lies and ``sheet.png`` comes.
        tags: what every file tells of itself, beside its model, prompt and seed.
        progress: told each clip.
        sets: shown each clip.
    """
    rows = {(way, case.name): _entry(way, case) for way in ways for case in cases}
    shown: dict[str, dict[str, np.ndarray]] = {case.name: {} for case in cases[:_ON_SHEET]}
    todo = [(way, group) for way in ways for group in _batches(cases, batch)]
    bases: dict[tuple[str, str], np.ndarray] = {}
    holds = any(isinstance(metric, Against) for metric in metrics.values())
    for arm, model in models:
        each: Any
        for each in metrics.values():
            if isinstance(each, Chunked):
                each.chunked(model.length)
        for way, group in todo:
            progress.now(f"{arm}, way {way}", len(group))
            made = model(group, first_frames(arm, way, group, model.size), progress.within)
            for case, clip in zip(group, made, strict=True):
                name = f"clips/{way}-{case.name}-{arm}.{'png' if len(clip) == 1 else 'mp4'}"
                told = {"comment": json.dumps({**tags, "model": arm, "prompt": case.prompt, "seed": case.seed})}
                if len(clip) == 1:
                    write_png(clip[0], folder / name, metadata=told)
                else:
                    write_mp4(clip, folder / name, metadata=told)
                if arm == ARMS[0] and holds:
                    bases[way, case.name] = clip
                numbers = measured(metrics, clip, case, bases.get((way, case.name), clip))
                if sets is not None:
                    sets.see(arm, way, case, clip)
                rows[way, case.name][arm] = {"clip": name, "shape": list(clip.shape), "numbers": numbers}
                if way == ways[0] and case.name in shown:
                    shown[case.name][arm] = clip
            progress.done()
        del model  # before the next is loaded
    sheet([(case.prompt, shown[case.name]) for case in cases[:_ON_SHEET]]).save(folder / "sheet.png")
    return list(rows.values())


def measured(metrics: Metrics, clip: np.ndarray, case: Case, base: np.ndarray) -> Numbers:
    """All metrics' numbers of a clip uint8 ``[t h w c]``, whose ``base`` is the base's of the same case.

    Raises:
        UserError: two metrics give a number of the same name.
    """
    numbers: Numbers = {}
    for name, metric in metrics.items():
        if isinstance(metric, OfSet):
            continue
        new = metric.against(clip, base, case) if isinstance(metric, Against) else metric(clip, case)
        twice = numbers.keys() & new.keys()
        if twice:
            raise UserError(f"metric {name}", f"{sorted(twice)} came before", "a name of its own", "rename it")
        numbers |= new
    return numbers


def metric(name: str, reference: str | None = None, *, of_embeddings: bool = False) -> Any:
    """The metric that ``conf/metric/<name>.yaml`` describes, or a .yaml file of the user's.

    Args:
        name: of an option, or a path to a file like one.
        reference: given to a metric that takes one.
        of_embeddings: which kind is wanted: metrics of embeddings, or of clips.

    Raises:
        UserError: there is none of that name, it is of the other kind, or its file has a fault.
    """
    node: Any
    if name.endswith(".yaml") and Path(name).is_file():
        node = config.checked_node(OmegaConf.load(name), name)
    else:
        options = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "metric").glob("*.yaml"))}
        if name not in options:
            known = ", ".join(n for n, each in options.items() if _is_of_embeddings(each) == of_embeddings)
            raise UserError("--metrics", f"no metric {name!r}", f"of {known}, or a .yaml file", "correct the name")
        node = options[name]
    if _is_of_embeddings(node) != of_embeddings:
        looks, wanted = ("frames", "embeddings") if of_embeddings else ("embeddings", "clips")
        raise UserError("--metrics", f"{name} looks at {looks}", f"metrics of {wanted}", "choose others")
    if "reference" in node and reference is not None:
        node.reference = reference
    return config.build(node)


def _is_of_embeddings(node: Any) -> bool:
    found = config.locate(node["_target_"])
    return isinstance(found, type) and issubclass(found, EmbeddingMetric)


def _cases(
    prompts_from: str, count: int, two_objects: int, motions: Mapping[str, float] | None, seed: int
) -> list[Case]:
    if prompts_from == "heldout":
        return asked.heldout(count=count, two_objects=two_objects, seed=seed, motions=motions)
    if motions:
        raise UserError("--motions", f"prompts from {prompts_from}", "held-out scenes of the world", "leave one out")
    return asked.from_file(Path(prompts_from), seed=seed)


def _check_ways(ways: Sequence[str], cases: Sequence[Case]) -> None:
    strange = [way for way in ways if way not in WAYS]
    if strange or not ways or len(set(ways)) < len(ways):
        raise UserError("--ways", ",".join(ways) or "nothing", f"some of {','.join(WAYS)}, each once", "correct it")
    for case in cases if "image" in ways else ():
        case.first_frame(world.SIDE, world.SIDE)


def _batches(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    return (cases[i : i + size] for i in range(0, len(cases), size))


def _entry(way: str, case: Case) -> dict[str, Any]:
    facts = {"name": case.name, "prompt": case.prompt, "seed": case.seed, "truth": case.truth}
    if case.owner is not None:
        facts["owner"] = case.owner
    return {"way": way, "group": case.group, **facts}


def circumstances() -> dict[str, Any]:
    """When, with what and on what."""
    return {
        "command": sys.argv,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "git": git_state(),
        "packages": versions(),
        "hardware": hardware(),
    }
