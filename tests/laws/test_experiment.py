"""Several runs side by side: groups by what they compute, numbers with intervals, tests paired by seed, the exports."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain import cli
from mmtrain.errors import UserError
from mmtrain.evaluate import compared, experiment
from mmtrain.evaluate.intervals import next_value, student, t_quantile
from mmtrain.run import Run, ending_loss


def run(folder: Path, seed: int, rate: float, losses: list[float], **facts: Any) -> Run:
    """A run's folder with what a report reads."""
    config = {"name": "toy", "seed": seed, "optim": {"lr": rate}, "trainer": {"steps": len(losses)}, "folder": "x"}
    config |= {key: {} for key in ("dataset", "backbone", "objective", "adapters", "logger")}
    path = folder / f"20260101-00000{seed}-toy-{seed}{str(rate)[2:5]:0>7}"
    path.mkdir(parents=True)
    manifest = {"name": "toy", "run_id": f"{seed}{rate}", "seed": seed, "config": config, "data": "d", **facts}
    (path / "manifest.json").write_text(json.dumps(manifest))
    rows = [f"{step},{loss!r}" for step, loss in enumerate(losses, start=1)]
    (path / "metrics.csv").write_text("\n".join(["step,loss", *rows, ""]))
    return Run.open(path)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two rates, three seeds; the second rate ends 0.5 lower, with each seed's own level."""
    made = []
    for rate, drop in ((0.1, 0.0), (0.2, 0.5)):
        for seed in range(3):
            level = 2.0 + 0.2 * seed
            losses = [*np.linspace(4, level, 18), level - drop, level - drop]
            made.append(run(tmp_path / "runs", seed, rate, [float(v) for v in losses], tags=["rates"]))
    return made


def test_runs_that_differ_in_nothing_but_the_seed_are_one_group(runs: list[Run]):
    first, second = experiment.groups(runs)
    assert (first.keys, second.keys) == ({"optim.lr": 0.1}, {"optim.lr": 0.2})
    assert (first.label, list(first.runs)) == ("lr 0.1", [0, 1, 2])
    assert first.values("loss") == pytest.approx({0: 2.0, 1: 2.2, 2: 2.4})
    assert ending_loss(runs[3].path) == pytest.approx(1.5)


def test_numbers_have_intervals_and_are_paired_by_seed(runs: list[Run]):
    first, second = experiment.rows(experiment.groups(runs))
    assert first.against is None
    assert (first.interval.mean, first.interval.high) == pytest.approx((2.2, 2.2 + 4.3027 * 0.2 / 3**0.5), rel=1e-4)
    assert second.against is not None
    assert second.against.difference.mean == pytest.approx(-0.5)
    assert second.against.difference.high == pytest.approx(-0.5)  # the level of a seed cancels
    assert second.against.p_value == pytest.approx(0.25)  # the least that three pairs can give
    assert second.interval.high > first.interval.low  # unpaired, they are not told apart


def test_one_seed_has_no_interval(runs: list[Run]):
    [row] = experiment.rows(experiment.groups(runs[:1]))
    assert not np.isfinite(row.interval.low)
    assert "one seed" in compared.page(experiment.groups(runs[:1]), [row])


def test_the_same_experiment_twice_is_refused(runs: list[Run], tmp_path: Path):
    twin = run(tmp_path / "again", 0, 0.1, [1.0])
    manifest = {**runs[0].manifest, "run_id": "other"}
    (twin.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the same experiment with seed 0"):
        experiment.groups([runs[0], Run.open(twin.path)])


def test_a_page_a_table_and_latex_by_tag(runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["report", "rates", "--out", "page.html", "--csv", "table.csv", "--latex", "table.tex"]
    assert cli.main(words) == 0
    page = Path("page.html").read_text()
    for said in ("6 runs in 2 groups", "optim.lr", "lr 0.2", "-0.5", "<path", "2<sup>1−n</sup>"):
        assert said in page
    assert "http" not in page.replace("http-equiv", "")
    table = list(csv.DictReader(io.StringIO(Path("table.csv").read_text())))
    assert [(row["group"], row["n"]) for row in table] == [("lr 0.1", "3"), ("lr 0.2", "3")]
    assert float(table[1]["difference"]) == pytest.approx(-0.5)
    assert float(table[1]["low"]) == pytest.approx(1.7 - 4.3027 * 0.2 / 3**0.5, rel=1e-4)
    assert float(table[0]["mean"]) == np.mean(list(experiment.groups(runs)[0].values("loss").values()))
    latex = Path("table.tex").read_text()
    assert latex.count(r"\\") == 3
    assert r"lr 0.1 & $2.2$ $\pm 0.5$ \\" in latex


def test_runs_are_named_by_pattern_id_and_folder(runs: list[Run], tmp_path: Path):
    folder = tmp_path / "runs"
    assert len(Run.find_all(["rates"], folder)) == 6
    assert len(Run.find_all(["20260101-000000-*"], folder)) == 2
    assert len(Run.find_all(["*-toy-*"], folder)) == 6
    both = Run.find_all([str(runs[0].path), runs[0].path.name, runs[4].path.name], folder)
    assert [each.path for each in both] == [runs[0].path, runs[4].path]
    with pytest.raises(UserError, match="no such run"):
        Run.find_all(["nothing"], folder)


def test_quantiles_of_students_t():
    """Textbook values, to their printed digits."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042}
    for df, value in printed.items():
        assert t_quantile(0.975, df) == pytest.approx(value, abs=6e-4)
    assert t_quantile(0.95, 7) == pytest.approx(1.895, abs=6e-4)


def test_intervals_of_few_values_cover_as_often_as_they_say():
    """Of five normal values the mean's interval holds the truth 95 times in 100, and the next value's the next."""
    draws = np.random.default_rng(0).normal(size=(4000, 6))
    means, nexts = (np.mean([made(row) for row in draws]) for made in (_holds_zero, _holds_next))
    assert means == pytest.approx(0.95, abs=0.012)
    assert nexts == pytest.approx(0.95, abs=0.012)


def _holds_zero(row: np.ndarray) -> bool:
    found = student(row[:5])
    return found.low < 0 < found.high


def _holds_next(row: np.ndarray) -> bool:
    found = next_value(row[:5])
    return bool(found.low < row[5] < found.high)
