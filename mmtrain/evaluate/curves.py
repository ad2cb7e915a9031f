"""Curves of a run's ``metrics.csv`` as HTML figures: lines in SVG that stretch, labels in HTML that do not."""

import csv
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path

import numpy as np

from mmtrain.errors import UserError

_POINTS = 400  # pairs of lowest and highest that a raw line is drawn through
_SMOOTH = 25  # a smoothed value is the mean over this part of the curve
_DECADES = 20.0  # a curve that falls by more than this factor is drawn on a logarithmic scale
Curve = tuple[np.ndarray, np.ndarray]


def read(file: Path) -> dict[str, Curve]:
    """Steps and values of each column of a ``metrics.csv``; of a step that a resumed run did twice, the later.

    Raises:
        UserError: a row that holds no numbers.
    """
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(opened))
    if len(rows) < 2:
        return {}
    names = rows[0]
    try:
        table = np.array([[float(value) for value in row] for row in rows[1:]])
        place = names.index("step")
    except ValueError as error:
        raise UserError(str(file), f"not all numbers ({error})", "a run's metrics", "mend it") from error
    last = {step: i for i, step in enumerate(table[:, place])}
    table = table[[last[step] for step in sorted(last)]]
    curves = {name: (table[:, place], table[:, i]) for i, name in enumerate(names) if i != place}
    known = {name: ~np.isnan(values) for name, (_, values) in curves.items()}  # a noise level that no sample had
    return {n: (steps[known[n]], values[known[n]]) for n, (steps, values) in curves.items() if known[n].any()}


def figure(name: str, curve: Curve, *, first: bool) -> str:
    """One curve, raw and smoothed; empty where no value is finite."""
    finite = np.isfinite(curve[1])
    steps, values = curve[0][finite], curve[1][finite]
    if not len(values):
        return ""
    smooth, width = _smoothed(values)
    low, high = _range(values, smooth)
    logarithmic = low > 0 and smooth.max() / smooth.min() > _DECADES
    x = _Axis(float(steps[0]), float(max(steps[-1], steps[0] + 1)), whole=True)
    y = _Axis(low, high, logarithmic=logarithmic)
    drawn = f'<path class="raw" d="{_path(x, y, *_thinned(steps, values))}"/>' if width > 1 else ""
    drawn += f'<path class="smooth" d="{_path(x, y, *_thinned(steps, smooth))}"/>'
    about = [f"raw, and the mean over {width} steps" if width > 1 else "", "logarithmic" if logarithmic else ""]
    small = "; ".join(word for word in about if word)
    spoken = f"{name} from {smooth[0]:.4g} at step {steps[0]:.0f} to {smooth[-1]:.4g} at step {steps[-1]:.0f}"
    return _framed(name, small, spoken, x, y, drawn, first)


def _framed(name: str, small: str, spoken: str, x: "_Axis", y: "_Axis", drawn: str, first: bool) -> str:
    """Paths with their axes, as a figure."""
    lines = '<line class="rule floor" x1="0" x2="100" y1="100" y2="100"/>'
    lines += "".join(f'<line class="rule" x1="0" x2="100" y1="{at:.2f}" y2="{at:.2f}"/>' for _, at in _falling(y))
    labels = "".join(f'<span class="y" style="top:{at:.2f}%">{text}</span>' for text, at in _falling(y))
    labels += "".join(f'<span class="x" style="left:{at:.2f}%">{text}</span>' for text, at in x.ticks(5))
    return (
        f'<figure class="curve{" first" if first else ""}">'
        f"<figcaption>{escape(name)}<small>{small}</small></figcaption>"
        f'<div class="plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(spoken)}">{lines}{drawn}</svg>{labels}'
        f'<span class="axis">optimizer step</span></div></figure>'
    )


TONES = ("#0c6e68", "#b0442d", "#4b6cb7", "#c08a1e", "#7a5aa6", "#61656d")
"""Colours of curves side by side, apart in light and dark; from the seventh on they come again."""


def tone(i: int) -> str:
    return TONES[i % len(TONES)]


def overlay(name: str, drawn: Sequence[tuple[int, Curve]], *, first: bool) -> str:
    """Several curves of one number on one scale, smoothed, each in a tone of its own; empty where none is finite."""
    kept = [(i, (c[0][np.isfinite(c[1])], c[1][np.isfinite(c[1])])) for i, c in drawn]
    smooth = [(i, steps, _smoothed(values)[0]) for i, (steps, values) in kept if len(values)]
    if not smooth:
        return ""
    every = np.concatenate([values for _, _, values in smooth])
    low, high = _range(every, every)
    starts, ends = (np.array([steps[at] for _, steps, _ in smooth]) for at in (0, -1))
    x = _Axis(float(starts.min()), float(max(ends.max(), starts.min() + 1)), whole=True)
    y = _Axis(low, high, logarithmic=low > 0 and high / low > _DECADES)
    lines = "".join(
        f'<path class="smooth" style="stroke:{tone(i)}" d="{_path(x, y, *_thinned(steps, values))}"/>'
        for i, steps, values in smooth
    )
    return _framed(name, "logarithmic" if y.logarithmic else "", f"{name} of {len(smooth)} groups", x, y, lines, first)


class _Axis:
    """Values to per cent of the axis, and round numbers on it; ``whole`` ones where values are counts."""

    def __init__(self, low: float, high: float, *, logarithmic: bool = False, whole: bool = False) -> None:
        self.low, self.high, self.logarithmic, self.whole = low, high, logarithmic, whole

    def place(self, values: np.ndarray) -> np.ndarray:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = log10(low), log10(high), np.log10(np.maximum(values, low / 10))
        return np.clip(100 * (values - low) / (high - low), 0, 100)

    def ticks(self, about: int) -> list[tuple[str, float]]:
        """Labels with their places."""
        if self.logarithmic:
            powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            steps = (1, 2, 5) if len(powers) < 6 else (1,)
            values = [f * 10.0**p for p in powers for f in steps if self.low <= f * 10.0**p <= self.high]
        else:
            raw = (self.high - self.low) / about
            unit = 10.0 ** floor(log10(raw))
            round_ones = [f * unit for f in (1, 2, 2.5, 5, 10) if f * unit >= raw * 0.999]
            step = next((s for s in round_ones if s.is_integer()), 1.0) if self.whole else round_ones[0]
            values = [i * step for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]
        return [(_text(v), float(at)) for v, at in zip(values, self.place(np.array(values)), strict=True)]


def _falling(axis: _Axis) -> list[tuple[str, float]]:
    """Ticks of an upright axis, whose places count from the top."""
    return [(text, 100 - at) for text, at in axis.ticks(6)]


def _text(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{round(value, 10):.4g}"


def _smoothed(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Centred means and their width; at the ends over what there is."""
    width = max(1, len(values) // _SMOOTH) | 1
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same"), width


def _range(values: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """The smoothed line whole, and all of the raw one but its outermost hundredth."""
    low = float(min(np.quantile(values, 0.005), smooth.min()))
    high = float(max(np.quantile(values, 0.995), smooth.max()))
    return (low, high) if high > low else (low - 0.5 * abs(low) - 0.5, high + 0.5 * abs(high) + 0.5)


def _thinned(steps: np.ndarray, values: np.ndarray) -> Curve:
    """Lowest and highest of each of few parts, in their order: the outline that all points would show."""
    if len(values) <= 2 * _POINTS:
        return steps, values
    edges = np.linspace(0, len(values), _POINTS + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(edges)]
    kept = [sorted({p.start + int(values[p].argmin()), p.start + int(values[p].argmax())}) for p in parts]
    chosen = [i for pair in kept for i in pair]
    return steps[chosen], values[chosen]


def _path(x: _Axis, y: _Axis, steps: np.ndarray, values: np.ndarray) -> str:
    points = zip(x.place(steps), 100 - y.place(values), strict=True)
    dot = "h0" if len(steps) == 1 else ""  # a line of no length has round ends
    return "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in points) + dot
