"""The page of an audit: for each prompt and attribute the shares of both models beside the target, and the pictures
behind each number. Computes nothing."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from mmtrain.evaluate.report import TEMPLATE
from mmtrain.evaluate.table import ARMS, p_text

_ROOM = 16_000_000  # bytes of pictures on a page
_SHOWN = 24  # pictures behind one number
_STYLE = """<style>
.audit .wanted { position: absolute; top: -.1rem; height: .95rem; width: 2px; margin-left: -1px; }
.audit .wanted { background: var(--ink); }
.behind { display: flex; flex-wrap: wrap; gap: .3rem; margin: .4rem 0 1rem; }
.behind img, .behind video { width: 4rem; height: auto; image-rendering: pixelated; border-radius: 3px; }
</style>"""


def page(found: Mapping[str, Any], folder: Path) -> str:
    """The whole page.

    Args:
        found: what ``audit.json`` holds.
        folder: where the pictures are.
    """
    facts = found["artifact"]
    head = (
        f'<header><p class="eyebrow">mmtrain · audit</p><h1>{escape(facts["name"])}</h1><p class="byline">Run '
        f'<span class="id">{escape(facts["run_id"])}</span><br>{escape(found["made"][:10])} · step {facts["step"]} · '
        f"{found['questions']['samples']} samples of each prompt, seed {found['seed']}</p></header>"
    )
    parts = [_STYLE, head, _verdict(found["rows"])]
    room = [_ROOM]
    for prompt in found["questions"]["prompts"]:
        parts.append(f"<section><h2>“{escape(prompt)}”</h2>")
        for attribute in found["questions"]["attributes"]:
            mine = [r for r in found["rows"] if (r["prompt"], r["attribute"]) == (prompt, attribute["name"])]
            parts.append(_attribute(attribute, mine, found["samples"], folder, room))
        parts.append("</section>")
    parts.append(
        "<footer><p>Bars are Wilson’s 95 % intervals, dots the shares, dark strokes the target. The distance is half "
        "the sum of |share − target|. p is the share of samples of the same size, drawn from the target, that lie as "
        "far from it or farther (Pearson’s statistic, Monte Carlo); not corrected for the number of rows. What could "
        "not be read is counted apart. A reader by CLIP has biases of its own: look at the pictures. Written by "
        "mmtrain.</p></footer>"
    )
    title = escape(f"{facts['name']} · audit · mmtrain")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=title, body="\n".join(parts))


def _verdict(rows: list[dict[str, Any]]) -> str:
    """In words: how many distributions differ from their target, before and after."""
    tested = {arm: [r for r in rows if r["model"] == arm and r["p_value"] is not None] for arm in ARMS}
    if not any(tested.values()):
        return '<div class="verdict"><p>Nothing could be read in any sample.</p></div>'
    off = {arm: sum(r["p_value"] < 0.05 for r in mine) for arm, mine in tested.items()}
    mean = {arm: sum(r["distance"] for r in mine) / max(1, len(mine)) for arm, mine in tested.items()}
    mark = "better" if off["adapted"] < off["base"] else "worse" if off["adapted"] > off["base"] else ""
    return (
        f'<div class="verdict {mark}"><p>{off["base"]} of {len(tested["base"])} distributions of the base and '
        f"{off['adapted']} of {len(tested['adapted'])} of the adapted model differ from their target (p &lt; 0.05).</p>"
        f"<p>Mean distance from the target: {mean['base']:.2f} base, {mean['adapted']:.2f} adapted.</p></div>"
    )


def _attribute(
    attribute: Mapping[str, Any], rows: list[dict[str, Any]], samples: Mapping[str, Any], folder: Path, room: list[int]
) -> str:
    said = " · ".join(
        f"{row['model']}: "
        + ("nothing read" if row["p_value"] is None else f"distance {row['distance']:.2f}, {_p(row['p_value'])}")
        + (f", {row['unread']} unread" if row["unread"] else "")
        for row in rows
    )
    heads = '<th scope="col"></th><th scope="col" class="bars"></th>' + "".join(
        f'<th scope="col" class="n"><span class="swatch {arm}">{arm}</span></th>' for arm in ARMS
    )
    lines = "".join(_kind(i, kind["name"], kind["target"], rows) for i, kind in enumerate(rows[0]["kinds"]))
    table = (
        f'<table class="result audit"><thead><tr>{heads}<th scope="col" class="n">target</th></tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )
    behind = "".join(_behind(attribute["name"], row, samples[row["model"]], folder, room) for row in rows)
    title = f"<h3>{escape(attribute['name'].capitalize())} <small class='note'>{escape(said)}</small></h3>"
    return f"{title}{table}<details><summary>The pictures behind these numbers</summary>{behind}</details>"


def _kind(i: int, name: str, target: float, rows: list[dict[str, Any]]) -> str:
    tracks, cells = "", ""
    for row in rows:
        kind = row["kinds"][i]
        if kind["share"] is None:
            cells += _cell(row["model"], "–")
            continue
        low, high, share = (100 * kind[key] for key in ("low", "high", "share"))
        tracks += (
            f'<div class="track {row["model"]}"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
            f'<b style="left:{share:.1f}%"></b><span class="wanted" style="left:{100 * target:.1f}%"></span></div>'
        )
        cells += _cell(row["model"], f"{share:.0f} % <small>{kind['count']} of {row['n']}</small>")
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="bars">{tracks}</td>{cells}'
        f"{_cell('target', f'{100 * target:.0f} %')}</tr>"
    )


def _cell(who: str, text: str) -> str:
    """Where a page is narrow there are no column heads, and a cell says whose it is."""
    return f'<td class="n value" data-who="{who}">{text}</td>'


def _p(p_value: float) -> str:
    return f"p {p_text(p_value)}" if p_value < 0.001 else f"p = {p_text(p_value)}"


def _behind(
    attribute: str, row: Mapping[str, Any], samples: list[dict[str, Any]], folder: Path, room: list[int]
) -> str:
    """Pictures of one model by kind, as many as there is room for."""
    text = ""
    for kind in [*(k["name"] for k in row["kinds"]), None]:
        mine = [s for s in samples if s["prompt"] == row["prompt"] and s["kinds"][attribute] == kind]
        if not mine:
            continue
        shown, count = "", 0
        for sample in mine[:_SHOWN]:
            payload = (folder / sample["file"]).read_bytes()
            room[0] -= len(payload)
            if room[0] >= 0:
                shown, count = shown + _shown(sample["file"], payload), count + 1
        name = "could not be read" if kind is None else kind
        fewer = "" if count == len(mine) else f", of which {count} are shown"
        told = f"{row['model']}: {escape(name)}, {len(mine)}{fewer}"
        text += f'<p class="note">{told}</p><div class="behind">{shown}</div>'
    return text


def _shown(name: str, payload: bytes) -> str:
    data = base64.b64encode(payload).decode()
    if name.endswith(".png"):
        return f'<img alt="" src="data:image/png;base64,{data}">'
    return f'<video muted loop autoplay playsinline src="data:video/mp4;base64,{data}"></video>'
