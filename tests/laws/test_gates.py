"""Laws of gates: the right side passes, the wrong one fails by so much, one that nothing answers is a mistake."""

from pathlib import Path
from typing import Any

import pytest

from mmtrain import cli
from mmtrain.config import check, compose
from mmtrain.config.gate import Gate, parse
from mmtrain.errors import UserError
from mmtrain.evaluate.gates import from_file, judged, lines, refuse_silent, told


def row(number: str, mean: float, half: float = 0.1, group: str = "one object") -> dict[str, Any]:
    side = {"mean": mean, "low": mean - half, "high": mean + half, "n": 9}
    zero = {"mean": mean - 0.5, "low": mean - 0.6, "high": mean - 0.4, "n": 9}
    return {"way": "sd", "group": group, "number": number, "share": True, "adapted": side, "difference": zero}


def test_a_line_is_read():
    assert parse(" motion >= 0.5 ") == Gate("motion >= 0.5", "motion", "adapted", True, 0.5)
    written = "two objects: vanished or jumped difference <= 5e-2"
    assert parse(written) == Gate(written, "vanished or jumped", "difference", False, 0.05, "two objects")
    for wrong in ("motion", "motion > 0.5", "motion >= half", ">= 0.5", "motion >="):
        with pytest.raises(UserError, match="a line such as"):
            parse(wrong)


@pytest.mark.parametrize(
    ("line", "margin", "sure"),
    [("motion >= 0.5", 0.2, True), ("motion >= 0.9", -0.2, True), ("motion <= 0.75", 0.05, False)]
    + [("motion difference >= 0.3", -0.1, False), ("motion <= 0.6", -0.1, False)],
)
def test_it_passes_or_fails_by_so_much(line: str, margin: float, sure: bool):
    [found] = judged([parse(line)], [row("motion", 0.7)])
    assert found.margin == pytest.approx(margin)
    assert found.passed == (margin >= 0)
    assert found.sure == sure or abs(abs(margin) - 0.1) < 1e-9  # the limit is the interval's end
    [said] = lines(told([found]))
    assert said.startswith("passed" if margin >= 0 else "FAILED")
    assert f"{abs(margin):.3g} {'to spare' if margin >= 0 else 'short'}" in said


def test_without_a_group_it_holds_for_all_and_with_one_for_that_alone():
    table = [row("motion", 0.7), row("motion", 0.2, group="two objects"), row("colour", 1.0)]
    assert [p.passed for p in judged([parse("motion >= 0.5")], table)] == [True, False]
    assert [p.passed for p in judged([parse("one object: motion >= 0.5")], table)] == [True]
    for line in ("moton >= 0.5", "three objects: motion >= 0.5"):
        with pytest.raises(UserError, match="one of those measured: motion, colour"):
            refuse_silent([parse(line)], table)
        assert judged([parse(line)], table) == []
    refuse_silent([parse("motion >= 9")], table)


def test_a_line_of_a_recipe_that_is_no_gate_is_found_before_anything_is_built(capsys: pytest.CaptureFixture[str]):
    """Among all other faults, each by its place, by what checks a recipe and by what trains it."""
    for verb in ("check", "train"):
        words = ["gates=['motion >= 0.5','motion > 0.5','colour >= much',3]", "optim.lr=fast"]
        assert cli.main([verb, "sd_lora", "dataset.shards=nowhere", *words]) == 2
        told = capsys.readouterr().err
        for fault in ("gates[1]: 'motion > 0.5'", "gates[2]: 'colour >= much'", "gates[3]: 3", "optim.lr: 'fast'"):
            assert fault in told
        assert "gates[0]" not in told
    assert not check(compose("sd_lora", ["gates=['one object: motion difference >= -0.05']"]))


def test_gates_from_a_file(tmp_path: Path):
    (tmp_path / "list.yaml").write_text("- motion >= 0.5\n- colour >= 0.9\n")
    (tmp_path / "under.yaml").write_text("gates:\n- motion >= 0.5\n")
    (tmp_path / "wrong.yaml").write_text("gates: 3\n")
    assert from_file(tmp_path / "list.yaml") == ["motion >= 0.5", "colour >= 0.9"]
    assert from_file(tmp_path / "under.yaml") == ["motion >= 0.5"]
    for name in ("wrong.yaml", "nowhere.yaml"):
        with pytest.raises(UserError, match="a YAML list of lines"):
            from_file(tmp_path / name)
