"""An alignment before and after its training, on the same pairs: retrieval, classes, probe, and the shape of the space.

Writes a folder with ``evaluation.json``, whole or not at all. What is asked is `pairs.py`, what is measured one file
per metric, the page `aligned_page.py`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain import artifact
from mmtrain.backbone.aligned import Aligned
from mmtrain.config.gate import parse
from mmtrain.errors import UserError
from mmtrain.evaluate import pairs, table
from mmtrain.evaluate.cases import Numbers
from mmtrain.evaluate.embedded import Embedded, EmbeddingMetric, Item, embedded, shape_of_space
from mmtrain.evaluate.gates import judged, refuse_silent, told
from mmtrain.evaluate.outcome import VERSION
from mmtrain.evaluate.run import circumstances, metric, show, staged
from mmtrain.run import Run, write_json
from mmtrain.run.checkpoints import newest

METRICS = ("retrieval", "zero_shot_world", "linear_probe_world")
COUNT = 64
_SHOWN = 7  # decimals of a similarity that are kept: fewer make ties that the ranks of the table have not


def subject(where: Path) -> tuple[Aligned, Aligned, dict[str, Any]] | None:
    """Base, adapted and their facts, of an artifact or a run that aligns; None of anything else.

    The base of a run that trained the towers themselves is what they were before.
    """
    if (where / artifact.FACTS).is_file():
        if artifact.read(where)["text_digest"] is not None:
            return None  # it reads text to make something
        base = artifact.base(where)
        if not isinstance(base, Aligned):
            return None
        adapted, _, facts = artifact.load(where)
        return base, adapted, {n: facts[n] for n in ("name", "run_id", "step", "base", "data")}
    if not (where / "manifest.json").is_file() or not (where / "checkpoints").is_dir():
        return None
    run = Run.open(where)
    adapted, _ = artifact.of_run(run)
    if not isinstance(adapted, Aligned):
        return None
    base, _ = artifact.assemble(run.cfg)  # fresh adapters change nothing
    step = int(newest(run.path / "checkpoints").name.split("-")[1])
    bases = run.manifest["bases"]["backbone"]
    facts = {"name": run.cfg.name, "run_id": run.run_id, "step": step, "base": bases, "data": run.manifest["data"]}
    return base, adapted, facts


def evaluate(
    base: Aligned,
    adapted: Aligned,
    facts: dict[str, Any],
    *,
    prompts_from: str,
    count: int,
    metrics: Sequence[str],
    seed: int,
    out: Path,
    gates: Sequence[str] = (),
) -> Path:
    """Compare two states of an alignment and print the table.

    Args:
        base, adapted, facts: as `subject` gives them.
        prompts_from: ``heldout`` for scenes of the world that training never saw, else shards of pairs.
        count: pairs, each a candidate for all others.
        metrics: names in ``conf/metric/``, of embeddings.
        seed: of scenes, wordings and resampling.
        out: folder to write.
        gates: lines of `gates.py`; what each found is told and kept, passed or not.

    Returns:
        The folder.
    """
    wanted = [parse(gate) for gate in gates]
    chosen = [embedding_metric(name) for name in metrics]
    apart = told_apart(chosen)
    items, passed = pairs.asked(prompts_from, count=count, seed=seed, num_frames=adapted.num_frames, distinct=apart)
    started = time.perf_counter()
    with staged(out) as staging:
        seen = {name: embedded(model.eval(), items) for name, model in (("base", base), ("adapted", adapted))}
        asked, rows = tabled(seen, chosen, items, seed)
        found = {
            "version": VERSION,
            "artifact": facts,
            "seconds": round(time.perf_counter() - started, 1),
            "seed": seed,
            "prompts_from": prompts_from,
            "ways": [table.PAIRS],
            "metrics": list(metrics),
            "settings": {"pairs": len(items), "passed over": passed},
            **circumstances(),
            "table": rows,
            "gates": told(judged(wanted, rows)),
            "alignment": {
                "captions": [item.caption for item in items],
                "space": {name: shape_of_space(each) for name, each in seen.items()},
                **({"similarity": {n: _rounded(e.text @ e.visual.T) for n, e in seen.items()}} if apart else {}),
            },
            "clips": asked,
        }
        write_json(staging / "evaluation.json", found)
    show(found)
    refuse_silent(wanted, rows)
    return out


def tabled(
    seen: dict[str, Embedded], metrics: Sequence[EmbeddingMetric], items: Sequence[Item], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every item's numbers before and after, and the table of them with intervals."""
    asked = []
    for each in metrics:
        numbers = {name: each(embeddings) for name, embeddings in seen.items()}
        for group in numbers["base"]:
            for i, item in enumerate(items):
                arms = {name: {"numbers": found[group][i]} for name, found in numbers.items()}
                asked.append({"way": table.PAIRS, "group": group, "name": item.name, "prompt": item.caption, **arms})
    rows = [*table.aggregate(asked, seed=seed), *(row for each in metrics for row in each.rows(seen, seed=seed))]
    return asked, [row for group in table.groups(rows).values() for row in group]


def means(found: Sequence[dict[str, list[Numbers]]]) -> dict[str, float]:
    """The mean of each number over the items, by ``group, number``."""
    columns: dict[str, list[float]] = {}
    for groups in found:
        for group, items in groups.items():
            for numbers in items:
                for name, value in numbers.items():
                    if value is not None:
                        columns.setdefault(f"{group}, {name}", []).append(float(value))
    return {name: sum(values) / len(values) for name, values in columns.items()}


def told_apart(metrics: Sequence[EmbeddingMetric]) -> bool:
    """Whether the captions of what is asked must all differ.

    Raises:
        UserError: of some they must, of others they do not.
    """
    kinds = {each.distinct for each in metrics}
    if len(kinds) > 1:
        came = "metrics that want captions that differ, beside those of clips that share them"
        raise UserError("metrics", came, "one kind", "ask them in two evaluations")
    return kinds != {False}


def embedding_metric(name: str) -> EmbeddingMetric:
    """The metric of embeddings of that name.

    Raises:
        UserError: there is none, or it looks at frames.
    """
    found: EmbeddingMetric = metric(name, of_embeddings=True)
    return found


def _rounded(similarity: np.ndarray) -> list[list[float]]:
    return [[round(float(value), _SHOWN) for value in row] for row in similarity]
