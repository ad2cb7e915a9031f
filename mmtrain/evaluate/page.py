"""The parts of a report's page, each a piece of HTML from facts already gathered. Reads no file but the clips."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmtrain.evaluate import curves
from mmtrain.evaluate.cases import OWN
from mmtrain.evaluate.table import ARMS, Row, between, counted, groups, label, outcome

_OPEN = 12  # prompts of a group that are shown at once; the others unfold
_ROOM = 24_000_000  # bytes of clips on a page
_CLIPS = "Each prompt gives one clip of each model."
_SMALL = 200  # pixels below which a clip's pixels are shown as squares
_WAYS = {
    "sd": "from a first frame that Stable Diffusion drew from the prompt",
    "none": "from the prompt alone",
    "image": "from the prompt and the true first frame",
}


def head(manifest: Mapping[str, Any], evaluated: Mapping[str, Any] | None, last: float | None) -> str:
    steps = f" · {last:,.0f} steps".replace(",", " ") if last is not None else ""
    return (
        f'<header><p class="eyebrow">mmtrain · run report</p><h1>{escape(manifest["name"])}</h1>'
        f'<p class="byline">Run <span class="id">{escape(manifest["run_id"])}</span>'
        f"<br>{escape(manifest['started'][:10])}{steps} · seed {manifest['seed']}</p></header>"
    )


def parts(evaluated: Mapping[str, Any], folder: Path) -> list[str]:
    """What an evaluation of clips shows."""
    return [verdict(evaluated), gates(evaluated), results(evaluated), clips(evaluated, folder)]


# what came out -------------------------------------------------------------------------------------------------------


def verdict(evaluated: Mapping[str, Any]) -> str:
    """In words: the first number of each group of the first way, then what else differs."""
    tables = [rows for (way, _), rows in groups(evaluated["table"]).items() if way == evaluated["ways"][0]]
    if not tables:
        return '<div class="verdict"><p>No number applies to these prompts; look at the clips.</p></div>'
    said = "".join(f"<p>{_group_sentence(rows)}</p>" for rows in tables)
    return f'<div class="verdict {outcome(tables[0][0])}"><p>{_headline(tables[0])}</p>{said}</div>'


def _headline(rows: Sequence[Row]) -> str:
    """The first number of a group, said as a person would."""
    row = rows[0]
    what, n = f"“{escape(row['number'])}”", row["base"]["n"]
    opening = {
        "better": f"The adapter improves {what}",
        "worse": f"The adapter makes {what} worse",
        "unclear": f"The adapter makes no clear difference to {what}",
    }[outcome(row)]
    adapted, base = _value(row, "adapted"), _value(row, "base")
    of = "" if row["group"] == OWN else f" of {escape(row['group'])}"
    values = f"it holds in {adapted} of cases, against {base}" if row["share"] else f"{adapted}, against {base}"
    return f"{opening}: {values} without the adapter, on {n} prompts{of}."


def _group_sentence(rows: Sequence[Row]) -> str:
    """Everything that differs, and everything that does not."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for row in rows:
        change = row["difference"]["mean"]
        points = (f"{100 * change:+.0f} points" if row["share"] else f"{change:+.3g}").replace("-", "−")
        found[outcome(row)].append(escape(row["number"]) + ("" if outcome(row) == "unclear" else f" ({points})"))
    most = max(row["base"]["n"] for row in rows)
    opening = f"<b>{escape(rows[0]['group'].capitalize())}</b> ({most} prompts)"
    if len(found["unclear"]) == len(rows):
        return f"{opening}: no clear difference in anything measured."
    said = [f"better in {_listed(found['better'])}" if found["better"] else "better in nothing"]
    said.append(f"worse in {_listed(found['worse'])}" if found["worse"] else "worse in nothing")
    unclear = f" No clear difference in {_listed(found['unclear'])}." if found["unclear"] else ""
    return f"{opening}: {'; '.join(said)}.{unclear}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def gates(evaluated: Mapping[str, Any]) -> str:
    """Which thresholds held, and by how much the others failed; nothing where none were set."""
    found = evaluated.get("gates", ())  # older evaluations have none
    if not found:
        return ""
    failed = sum(not each["passed"] for each in found)
    rows = "".join(
        f'<tr><th scope="row">{escape(each["gate"])} <small>{escape(each["group"])}</small></th>'
        f'<td class="n">{each["value"]:.3g}</td><td class="n change {"better" if each["passed"] else "worse"}">'
        f"{'passed' if each['passed'] else 'failed'} <small>{abs(each['margin']):.3g} "
        f"{'to spare' if each['passed'] else 'short'}{'' if each['sure'] else ', not for sure'}</small></td></tr>"
        for each in found
    )
    said = f"{failed} of {len(found)} failed" if failed else "Passed" if len(found) == 1 else f"All {len(found)} passed"
    return f'<section><h2>Gates</h2><p>{said}.</p><table class="result"><tbody>{rows}</tbody></table></section>'


def results(evaluated: Mapping[str, Any]) -> str:
    tables = groups(evaluated["table"])
    main = [result_table(*place, rows) for (place, rows) in tables.items() if place[0] == evaluated["ways"][0]]
    text = (
        f"<h2>Base and adapted</h2><p>Both models were given the same prompts, seeds and first frames, "
        f"{_WAYS[evaluated['ways'][0]]}. Bars are 95 % intervals, dots the means.</p>" + "".join(main)
    )
    for way in evaluated["ways"][1:]:
        rest = [result_table(*place, rows) for place, rows in tables.items() if place[0] == way]
        text += f"<details><summary>The same {_WAYS[way]}</summary>{''.join(rest)}</details>"
    return f"<section>{text}</section>"


def result_table(way: str, group: str, rows: Sequence[Row]) -> str:
    most = max(row["base"]["n"] for row in rows)
    all_shares = all(row["share"] for row in rows)
    scale = '<div class="scale"><span>0 %</span><span>50 %</span><span>100 %</span></div>' if all_shares else ""
    heads = '<th scope="col"></th><th scope="col" class="bars">' + scale + "</th>"
    heads += "".join(f'<th scope="col" class="n">{_swatch(arm)}<small></small></th>' for arm in ARMS)
    heads += '<th scope="col" class="n change">difference<small></small></th>'
    body = "".join(_row(row, most) for row in rows)
    return (
        f"<h3>{escape(group.capitalize())} <small class='note'>{counted(way, most)}</small></h3>"
        f'<table class="result"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )


def _swatch(arm: str) -> str:
    return f'<span class="swatch {arm}">{arm}</span>'


def _row(row: Row, most: int) -> str:
    less = " <small>less is better</small>" if row["better"] == "lower" else ""
    values = "".join(
        f'<td class="n value" data-who="{arm}">{_value(row, arm)} <small>{_ends(row, arm)}</small></td>' for arm in ARMS
    )
    p = "p &lt; 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.2g}"
    change = between(row, "difference").split(" ")[0].replace("-", "−")
    change = "±0" if change in ("+0", "−0") else change
    return (
        f'<tr><th scope="row">{escape(label(row, most))}{less}</th><td class="bars">{_bars(row)}</td>{values}'
        f'<td class="n change {outcome(row)}">{change} <small>{p}</small></td></tr>'
    )


def _value(row: Row, arm: str) -> str:
    value = row[arm]["mean"]
    return f"{100 * value:.0f} %" if row["share"] else f"{value:.3g}".replace("-", "−")


def _ends(row: Row, arm: str) -> str:
    return between(row, arm).split(" ", 1)[1].strip("[]").replace(", ", "–").replace("-", "−")


def _bars(row: Row) -> str:
    """Two tracks on one scale: 0 to 1 for a share, else from the lowest end (or 0) to the highest."""
    low = 0.0 if row["share"] else min(0.0, *(row[arm]["low"] for arm in ARMS))
    high = 1.0 if row["share"] else max(0.0, *(row[arm]["high"] for arm in ARMS)) or 1.0
    scale = 100 / (high - low)
    tracks = []
    for arm in ARMS:
        start, end, mean = ((row[arm][key] - low) * scale for key in ("low", "high", "mean"))
        band = f'<i style="left:{start:.1f}%;width:{end - start:.1f}%"></i><b style="left:{mean:.1f}%"></b>'
        tracks.append(f'<div class="track {arm}">{band}</div>')
    return "".join(tracks)


# clips ---------------------------------------------------------------------------------------------------------------


def clips(evaluated: Mapping[str, Any], folder: Path) -> str:
    """Clips of the first way as they came, as many as there is room for."""
    lower = {row["number"] for row in evaluated["table"] if row["better"] == "lower"}
    shown = [clip for clip in evaluated["clips"] if clip["way"] == evaluated["ways"][0]]
    still = all(clip["base"]["shape"][0] == 1 for clip in shown)
    text = f"<h2>{'Pictures' if still else 'Clips'}</h2><p>In the order in which they were made; none was picked.</p>"
    text += "" if still else _SPEED
    room = _ROOM
    for group in dict.fromkeys(clip["group"] for clip in shown):
        cards = []
        mine = [clip for clip in shown if clip["group"] == group]
        for clip in mine:
            room -= sum((folder / clip[arm]["clip"]).stat().st_size for arm in ARMS)
            if room >= 0:
                cards.append(_card(clip, folder, lower))
        text += f"<h3>{escape(group.capitalize())}</h3>{_grid(cards[:_OPEN])}"
        if cards[_OPEN:]:
            text += f"<details><summary>{len(cards) - _OPEN} more</summary>{_grid(cards[_OPEN:])}</details>"
        if len(cards) < len(mine):
            text += f'<p class="note">{len(mine) - len(cards)} more lie in the evaluation\'s folder.</p>'
    return f"<section>{text}</section>"


_SPEED = '<div class="speed" role="group" aria-label="Speed" hidden><span>Speed</span>' + "".join(
    f'<button value="{rate}" aria-pressed="{"true" if rate == "0.5" else "false"}">{name}</button>'
    for rate, name in (("0.25", "¼"), ("0.5", "½"), ("1", "1"))
)
_SPEED += "</div>"


def _grid(cards: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(cards)}</div>'


def _card(clip: Mapping[str, Any], folder: Path, lower: set[str]) -> str:
    sides = []
    for arm in ARMS:
        film = base64.b64encode((folder / clip[arm]["clip"]).read_bytes()).decode()
        _, high, wide, _ = clip[arm]["shape"]
        size = f'width="{wide}" height="{high}"{" class=small" if wide < _SMALL else ""}'
        video = f'<video autoplay loop muted playsinline {size} src="data:video/mp4;base64,{film}"></video>'
        if clip[arm]["clip"].endswith(".png"):
            video = f'<img alt="" {size} src="data:image/png;base64,{film}">'
        who = f'<p class="who">{_swatch(arm)}</p>'
        sides.append(f"<div>{who}{video}{_facts(clip[arm]['numbers'], lower)}</div>")
    return (
        f'<figure class="card"><figcaption>{escape(clip["prompt"])}</figcaption>'
        f'<div class="pair">{"".join(sides)}</div></figure>'
    )


def _facts(numbers: Mapping[str, bool | float | None], lower: set[str]) -> str:
    """A tick or a cross for each truth told of a clip; a fault that did not happen is not told."""
    items = []
    for name, value in numbers.items():
        if isinstance(value, bool):
            good = value != (name in lower)
            if good and name in lower:
                continue
            sign = '<span aria-label="yes">✓</span>' if good else '<span aria-label="no">✗</span>'
            items.append(f'<li class="{"yes" if good else "no"}">{sign}<span>{escape(name)}</span></li>')
        elif value is not None:
            items.append(f'<li class="yes"><span></span><span>{escape(name)} {value:.3g}</span></li>')
    return f'<ul class="facts">{"".join(items)}</ul>'


# the run -------------------------------------------------------------------------------------------------------------


def not_evaluated(aligns: bool) -> str:
    """What to do for numbers; a run that ``aligns`` needs no export for that."""
    way = (
        "Compare it with its base: <code>mmtrain evaluate RUN</code>, and this report again."
        if aligns
        else "Export it, then compare it with its base: <code>mmtrain export RUN</code>, "
        "<code>mmtrain evaluate ARTIFACT</code>, and this report again."
    )
    return f'<div class="verdict"><p>This run has not been evaluated yet.</p><p>{way}</p></div>'


def training(drawn: Mapping[str, curves.Curve]) -> str:
    figures = [curves.figure(name, curve, first=i == 0) for i, (name, curve) in enumerate(drawn.items())]
    inside = "".join(figures) or "<p>Nothing was logged.</p>"
    return f'<section><h2>Training</h2><div class="curves">{inside}</div></section>'


def again(commands: Iterable[tuple[str, str]]) -> str:
    lines = "\n".join(f'<span class="why"># {escape(why)}</span>\n{escape(line)}' for line, why in commands)
    return f"<section><h2>Do it again</h2><pre>{lines}</pre></section>"


def circumstances(facts: Mapping[str, str], config: str) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f"<section><h2>Circumstances</h2><dl>{items}</dl>"
        f"<details><summary>The whole config</summary><pre>{escape(config)}</pre></details></section>"
    )


def foot(evaluated: Mapping[str, Any] | None) -> str:
    if evaluated is None:
        return "<footer><p>Written by mmtrain.</p></footer>"
    pairs = "alignment" in evaluated
    asked, over = ("Before and after are asked about the same pairs.", "pairs") if pairs else (_CLIPS, "prompts")
    few = "pairs" if pairs else "clips"
    return (
        f"<footer><p>{asked} Intervals cover 95 %: bootstrapped over {over}, or "
        f"Wilson’s where fewer than five {few} differ from the rest. p is of a two-sided sign-flip test, before "
        "against after; “better” and “worse” mean p &lt; 0.05, not corrected for the number of rows. "
        "Written by mmtrain.</p></footer>"
    )
