"""The parts of a report's page that an alignment has in the place of clips: retrieval, similarities, ranks, space."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmtrain.evaluate.page import gates, result_table
from mmtrain.evaluate.retrieval import DIRECTIONS, ranks
from mmtrain.evaluate.table import ARMS, between, groups, outcome

_SIDE = 512  # pixels of a matrix, at least
_PAPER, _INK = np.array([251, 250, 247.0]), np.array([12, 110, 104.0])
_WORSE, _FAR = (1, 2, 3, 5, 10, 20), "more"


def parts(evaluated: Mapping[str, Any], _: Path) -> list[str]:
    """Verdict, tables, matrices and ranks where captions differ, and the shape of the space."""
    made = [verdict(evaluated), gates(evaluated), results(evaluated)]
    if "similarity" in evaluated["alignment"]:
        made += [similarities(evaluated), rank_histograms(evaluated)]
    return [*made, space(evaluated)]


def verdict(evaluated: Mapping[str, Any]) -> str:
    """In words: the first number of each direction."""
    firsts = [rows[0] for (_, group), rows in groups(evaluated["table"]).items() if group in DIRECTIONS]
    if not firsts:
        return '<div class="verdict"><p>Retrieval was not among the metrics.</p></div>'
    lines = []
    for row in firsts:
        word = {"better": "better", "worse": "worse", "unclear": "no clear difference"}[outcome(row)]
        lines.append(
            f"{escape(row['group'])}: {escape(row['number'])} {between(row, 'adapted')} %, "
            f"before {between(row, 'base')} % ({word})"
        )
    count = evaluated["settings"]["pairs"]
    first, *more = [f"<p>{line}.</p>" for line in lines]
    note = f"<p>Each of {count} captions against {count} candidates; a tie counts against the right one.</p>"
    return f'<div class="verdict {outcome(firsts[0])}">{first}{"".join(more)}{note}</div>'


def results(evaluated: Mapping[str, Any]) -> str:
    text = (
        "<h2>Before and after</h2><p>Both were asked about the same pairs. Bars are 95 % intervals, dots the means.</p>"
    )
    tables = [result_table(*place, rows) for place, rows in groups(evaluated["table"]).items()]
    return f"<section>{text}{''.join(tables)}</section>"


def similarities(evaluated: Mapping[str, Any]) -> str:
    """One picture for each state; the right answers lie on the diagonal."""
    found = evaluated["alignment"]["similarity"]
    figures = "".join(_figure(name, _matrix(np.asarray(found[name]))) for name in ARMS)
    note = (
        "Captions from the top, pictures or clips from the left; white is the least similar of a matrix, dark the most."
    )
    return f'<section><h2>Similarities</h2><p>{note}</p><div class="curves">{figures}</div></section>'


def _figure(name: str, inside: str) -> str:
    return f'<figure class="curve"><figcaption>{escape(name)}</figcaption>{inside}</figure>'


def _matrix(similarity: np.ndarray) -> str:
    low, high = float(similarity.min()), float(similarity.max())
    share = ((similarity - low) / max(high - low, 1e-9))[..., None]
    pixels = np.round(_PAPER + share * (_INK - _PAPER)).astype(np.uint8)
    times = max(1, -(-_SIDE // len(similarity)))
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(file, "PNG", optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    spoken = f"cosines from {low:.2f} to {high:.2f}, on the diagonal {float(np.diagonal(similarity).mean()):.2f}"
    picture = f'<img style="width:100%;image-rendering:pixelated" alt="{spoken}" src="data:image/png;base64,{code}">'
    return f'{picture}<p class="note">{spoken} in the mean</p>'


def rank_histograms(evaluated: Mapping[str, Any]) -> str:
    """How many captions have their own picture at which rank, before and after; and the other way round."""
    text = ""
    for way, turned in zip(DIRECTIONS, (False, True), strict=True):
        found = {name: np.asarray(m) for name, m in evaluated["alignment"]["similarity"].items()}
        counts = {name: _binned(ranks(m.T if turned else m)) for name, m in found.items()}
        text += _figure(way, _bars(counts, len(next(iter(found.values())))))
    return f'<section><h2>Ranks of the right answer</h2><div class="curves">{text}</div></section>'


def _binned(found: np.ndarray) -> list[int]:
    edges = [0, *_WORSE]
    inside = [int(((found > low) & (found <= high)).sum()) for low, high in zip(edges, _WORSE, strict=False)]
    return [*inside, int((found > _WORSE[-1]).sum())]


def _bars(counts: Mapping[str, Sequence[int]], total: int) -> str:
    names = [str(_WORSE[0]), *(_span(a + 1, b) for a, b in pairwise(_WORSE)), _FAR]
    rows = ""
    for i, name in enumerate(names):
        tracks = "".join(
            f'<div class="track {arm}" title="{arm}: {counts[arm][i]}">'
            f'<i style="left:0;width:{100 * counts[arm][i] / total:.1f}%"></i></div>'
            for arm in ARMS
        )
        told = " / ".join(str(counts[arm][i]) for arm in ARMS)
        cells = f'<td class="bars" style="width:70%">{tracks}</td><td class="n">{told}</td>'
        rows += f'<tr><th scope="row" style="white-space:nowrap">{name}</th>{cells}</tr>'
    head = f'<tr><th scope="col">rank</th><th></th><th class="n" scope="col">{" / ".join(ARMS)}</th></tr>'
    return f'<table class="result"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def space(evaluated: Mapping[str, Any]) -> str:
    """Alignment and uniformity before and after; their curves over the run are among the run's."""
    found = evaluated["alignment"]["space"]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)} <small>less is better</small></th>'
        + "".join(f'<td class="n">{found[arm][name]:.3f}</td>' for arm in ARMS)
        + "</tr>"
        for name in found["base"]
    )
    head = "".join(f'<th class="n" scope="col">{arm}</th>' for arm in ARMS)
    note = (
        "Alignment is the mean squared distance of a pair, uniformity the logarithm of the mean of exp(−2·distance²) "
        "between two of a side, both on the unit sphere (Wang &amp; Isola 2020)."
    )
    return (
        f"<section><h2>The space</h2><p>{note} Temperature, alignment and uniformity over the run are below.</p>"
        f'<table class="result"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></section>'
    )
