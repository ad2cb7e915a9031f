"""Evaluation: what is asked, how answers are paired and averaged, and the whole way from an artifact to a folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmtrain import artifact, cli, config
from mmtrain.data import world
from mmtrain.errors import UserError
from mmtrain.evaluate import cases as asked
from mmtrain.evaluate import table
from mmtrain.evaluate.cases import ONE, OWN, TWO, Case, from_file, heldout
from mmtrain.evaluate.fulfilment import Fulfilment
from mmtrain.evaluate.intervals import bootstrap, wilson
from mmtrain.evaluate.progress import Progress
from mmtrain.evaluate.run import compare, metric
from mmtrain.run import Run, write_json
from mmtrain.run.checkpoints import manifest_of


def frames_of(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# what is asked --------------------------------------------------------------------------------------------------------


def test_held_out_cases_are_a_function_of_the_seed_and_never_seen_in_training():
    cases = heldout(count=20, two_objects=10, seed=3)
    assert [c.group for c in cases] == [ONE] * 20 + [TWO] * 10
    assert cases == heldout(count=20, two_objects=10, seed=3)
    assert cases[:20] == heldout(count=20, two_objects=0, seed=3), "the second group does not move the first"
    assert cases[0].prompt != heldout(count=1, two_objects=0, seed=4)[0].prompt
    assert len({c.seed for c in cases}) == len({c.name for c in cases}) == 30
    for case in cases:
        objects = case.truth["objects"]
        assert len(objects) == (1 if case.group == ONE else 2)
        assert any(world.held_out(o["colour"], o["shape"], o["motion"]) for o in objects)
        assert all(o["colour"] in case.prompt and o["shape"] in case.prompt for o in objects)


def test_held_out_cases_of_chosen_motions():
    cases = heldout(count=20, two_objects=4, seed=3, motions={"still": 0.5, "circling": 0.5})
    motions = [o["motion"] for c in cases for o in c.truth["objects"]]
    assert set(motions) == {"still", "circling"}
    assert all(any(world.held_out(o["colour"], o["shape"], o["motion"]) for o in c.truth["objects"]) for c in cases)
    with pytest.raises(UserError, match="flying"):
        heldout(count=1, two_objects=0, seed=0, motions={"flying": 1.0})


def test_the_true_first_frame_is_the_scenes_own():
    [case] = heldout(count=1, two_objects=0, seed=0)
    assert np.array_equal(case.first_frame(64, 64), world.render(case.scene)[0])
    assert case.first_frame(32, 48).shape == (32, 48, 3)


def test_prompts_of_a_file(tmp_path: Path):
    Image.new("RGB", (40, 20), (250, 0, 0)).save(tmp_path / "red.png")
    truth = heldout(count=1, two_objects=0, seed=0)[0].truth
    (tmp_path / "own.txt").write_text("a red circle\n\n  two cats \n")
    lines = [{"prompt": "a red circle", "image": "red.png"}, {"prompt": "b", "truth": truth}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(c.prompt, c.group, c.truth) for c in from_file(tmp_path / "own.txt", seed=0)] == [
        ("a red circle", OWN, None),
        ("two cats", OWN, None),
    ]
    first, second = from_file(tmp_path / "own.jsonl", seed=0)
    assert (first.first_frame(8, 16) == (250, 0, 0)).all()
    assert second.truth == truth
    with pytest.raises(UserError, match="no first frame"):
        second.first_frame(8, 8)


BAD_FILES = {
    "no such file": None,
    "no prompt in it": b"\n \n",
    "no UTF-8": b"\xff\xfe",
    "no JSON": b"{prompt}\n",
    'an object with "prompt"': b'{"prompt": 3}\n',
    "x.jsonl:2": b'{"prompt": "a"}\n["b"]\n',
    "the truth": b'{"prompt": "a", "truth": {"objects": []}}\n',
}


@pytest.mark.parametrize("said", BAD_FILES)
def test_a_bad_file_of_prompts_is_told(said: str, tmp_path: Path):
    file = tmp_path / "x.jsonl"
    if BAD_FILES[said] is not None:
        file.write_bytes(BAD_FILES[said])
    with pytest.raises(UserError, match=said):
        from_file(file, seed=0)


# what is measured -----------------------------------------------------------------------------------------------------


def frozen(clip: np.ndarray) -> np.ndarray:
    return np.repeat(clip[:1], len(clip), 0)


def test_fulfilment_of_true_frozen_and_unknown_clips():
    judge = metric("fulfilment")
    moving = [c for c in heldout(count=12, two_objects=6, seed=1) if c.truth["objects"][0]["motion"] != "still"]
    for case in moving:
        clip = world.render(case.scene)
        true, still = judge(clip, case), judge(frozen(clip), case)
        assert not true["vanished or jumped"]
        assert all(v for name, v in true.items() if v is not None and name != "vanished or jumped")
        assert (still["motion"], still["colour"], still["whole prompt"]) == (False, True, False)
        assert list(true) == list(still)
        assert (true["binding"] is None) == (case.group == ONE)
    unknown = Case(name="x", group=OWN, prompt="two cats", seed=0)
    assert judge(clip, unknown) == {"vanished or jumped": False}
    with pytest.raises(UserError, match="a clip of 7 frames"):
        judge(clip[:7], moving[0])


def test_size_counts_only_where_the_prompt_tells_it():
    told = {
        "a tiny red circle getting bigger on grey": True,
        "a red circle getting bigger on grey": False,
        "a big red circle growing larger on grey": True,
        "a red circle moving left above a little blue square at rest on white": False,
        "a large red circle moving left above a little blue square at rest on white": True,
    }
    for prompt, counts in told.items():
        sample = next(c for c in heldout(count=1, two_objects=1, seed=0) if (c.group == TWO) == ("above" in prompt))
        case = Case(name="x", group=OWN, prompt=prompt, seed=0, truth=sample.truth)
        assert (Fulfilment()(world.render(sample.scene), case)["size"] is not None) == counts, prompt


# how answers are paired and averaged ----------------------------------------------------------------------------------


def clip(base: dict[str, Any], adapted: dict[str, Any], group: str = ONE, way: str = "sd") -> dict[str, Any]:
    return {"way": way, "group": group, "base": {"numbers": base}, "adapted": {"numbers": adapted}}


def test_rows_pair_the_two_clips_of_a_prompt():
    clips = [clip({"a": False, "b": i * 0.5}, {"a": i < 15, "b": i * 0.5 + 1}) for i in range(20)]
    clips += [clip({"a": True, "b": None}, {"a": True, "b": 1.0}, group=TWO)] * 8
    a, b, two = table.aggregate(clips, seed=0, lower_is_better=["b"])
    assert (a["number"], a["share"], a["better"], a["base"]["mean"], a["adapted"]["mean"]) == (
        "a",
        True,
        "higher",
        0,
        0.75,
    )
    assert a["difference"]["mean"] == 0.75
    assert a["p_value"] < 0.001
    assert (b["share"], b["better"], b["difference"]["mean"]) == (False, "lower", 1.0)
    assert b["difference"]["low"] == b["difference"]["high"] == 1.0, (
        "pairs differ by one, however far prompts lie apart"
    )
    assert (table.outcome(a), table.outcome(b), table.outcome(two)) == ("better", "worse", "unclear")
    assert (two["group"], two["number"], two["base"]["n"]) == (TWO, "a", 8), "b does not apply to any pair"


def test_a_number_that_applies_to_some_pairs_is_averaged_over_them():
    clips = [clip({"a": 1.0 * i}, {"a": None if i % 2 else 1.0}) for i in range(10)]
    [row] = table.aggregate(clips, seed=0)
    assert (row["base"]["n"], row["base"]["mean"], row["adapted"]["mean"]) == (5, 4.0, 1.0)


def test_a_share_at_the_edge_has_wilsons_interval():
    edge, middle = [True] * 47 + [False], [True] * 30 + [False] * 18
    assert table.interval(edge, seed=0) == wilson(np.array(edge))
    assert table.interval(middle, seed=0) == bootstrap(np.array(middle), seed=0)
    assert table.interval([1.0] * 48, seed=0).low == 1.0, "numbers that happen to be ones are no share"


def test_the_terminals_table_says_what_the_rows_say(capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    clips = [clip({"vanished or jumped": i < 6}, {"vanished or jumped": False}) for i in range(20)]
    rows = table.aggregate(clips, seed=0, lower_is_better=["vanished or jumped"])
    [shown] = table.for_terminal(rows)
    Console(width=80).print(shown)
    out = capsys.readouterr().out
    assert "one object · way sd · 20 prompts" in out
    assert "vanished or jumped ↓" in out
    assert all(table.between(rows[0], side) in out for side in table.SIDES), "nothing is cut at 80 columns"
    assert "30 [" in out
    assert "0 [0, 16]" in out


# both models ----------------------------------------------------------------------------------------------------------


class Drawn:
    """A model that draws the asked scene, spoiled in its own way, and notes what it was given."""

    size, length = (64, 64), None

    def __init__(self, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
        self.spoil, self.given = spoil, []

    def __call__(self, cases: Sequence[Case], images: np.ndarray | None, progress: Any) -> np.ndarray:
        progress(1, 1)
        self.given.append(([c.name for c in cases], [c.seed for c in cases], images))
        return np.stack([self.spoil(world.render(c.scene)) for c in cases])


def test_both_models_are_asked_the_same(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    cases = heldout(count=5, two_objects=2, seed=2)
    base, adapted = Drawn(frozen), Drawn(lambda clip: clip)
    with Progress(28) as progress:
        entries = compare(
            cases,
            ["image", "none"],
            models=[("base", base), ("adapted", adapted)],
            first_frames=lambda arm, way, group, size: (
                np.stack([c.first_frame(*size) for c in group]) if way == "image" else None
            ),
            metrics={"fulfilment": metric("fulfilment")},
            batch=3,
            folder=tmp_path,
            tags={"run_id": "r1"},
            progress=progress,
        )
    assert progress.made == 28
    assert [len(names) for names, _, _ in base.given] == [3, 3, 1, 3, 3, 1]
    for before, after in zip(base.given, adapted.given, strict=True):
        assert before[:2] == after[:2]
        assert np.array_equal(before[2], after[2]) if before[2] is not None else after[2] is None
    assert [(e["way"], e["name"]) for e in entries] == [(w, c.name) for w in ("image", "none") for c in cases]
    for entry in entries:
        for arm in table.ARMS:
            with av.open(str(tmp_path / entry[arm]["clip"])) as container:
                told = json.loads(container.metadata["comment"])
            assert told == {"run_id": "r1", "model": arm, "prompt": entry["prompt"], "seed": entry["seed"]}
            assert list(frames_of(tmp_path / entry[arm]["clip"]).shape) == entry[arm]["shape"] == [16, 64, 64, 3]
    rows = {(r["way"], r["group"], r["number"]): r for r in table.aggregate(entries, seed=0)}
    assert rows["image", ONE, "motion"]["adapted"]["mean"] == rows["none", TWO, "binding"]["adapted"]["mean"] == 1
    assert rows["image", ONE, "colour"]["base"]["mean"] == 1
    assert rows["image", ONE, "motion"]["base"]["mean"] < 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 5 * 64


def test_two_metrics_may_not_give_one_number_twice(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    twice = {"one": lambda clip, case: {"a": 1.0}, "other": lambda clip, case: {"a": 2.0}}
    with Progress(1) as progress, pytest.raises(UserError, match=r"metric other: \['a'\] came before"):
        compare(
            heldout(count=1, two_objects=0, seed=0),
            ["none"],
            models=[("base", Drawn(frozen))],
            first_frames=lambda *_: None,
            metrics=twice,
            batch=1,
            folder=tmp_path,
            tags={},
            progress=progress,
        )


# from an artifact to a folder -----------------------------------------------------------------------------------------


def exported(folder: Path, strength: float, svd: Path, clip: Path) -> Path:
    """An artifact that a run would leave whose adapters had learnt ``strength`` times noise; 0 is a fresh one."""
    sizes = ["adapters.bridge.width=16", "adapters.bridge.heads=2", "adapters.motion.rank=2"]
    words = [f"backbone.path={svd}", f"backbone.text_path={clip}", f"folder={folder}", *sizes]
    cfg = config.checked(config.compose("svd_text_bridge", words))
    backbone, adapters = artifact.assemble(cfg)
    run = Run.start(cfg, cfg.folder, data="0123abcd", bases={"backbone": backbone.base})
    checkpoint = run.path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    noise = torch.Generator().manual_seed(1)
    named = {f"{name}/{key}": w.detach() for name, a in adapters.items() for key, w in a.named_weights().items()}
    moved = {n: (w + strength * torch.randn(w.shape, generator=noise)).contiguous() for n, w in named.items()}
    save_file(moved, checkpoint / "weights.safetensors")
    (checkpoint / "state.json").write_text(json.dumps({"step": 2, "buffers": {}}))
    write_json(checkpoint / "manifest.json", manifest_of(checkpoint))
    (folder / "artifact").mkdir()
    artifact.write(run, backbone, folder / "artifact")
    return folder / "artifact"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, tiny_svd: Path, tiny_clip: Path) -> Path:
    return exported(tmp_path_factory.mktemp("fresh"), 0.0, tiny_svd, tiny_clip)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, tiny_svd: Path, tiny_clip: Path) -> Path:
    return exported(tmp_path_factory.mktemp("learnt"), 0.3, tiny_svd, tiny_clip)


def ask(tmp_path: Path) -> Path:
    """Prompts that the tiny text tower can hold, one with its truth and first frame."""
    Image.new("RGB", (64, 64), (10, 200, 10)).save(tmp_path / "green.png")
    truth = heldout(count=1, two_objects=0, seed=0)[0].truth
    lines = [{"prompt": "a red circle moving left", "truth": truth}, {"prompt": "a blue square still", "truth": truth}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({**line, "image": "green.png"}) + "\n" for line in lines))
    return file


def test_a_fresh_adapter_makes_no_difference(
    fresh: Path, tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Step zero, seen through the whole evaluation: base and adapted are the same clips, bit for bit, in every way."""
    words = ["evaluate", fresh, "--prompts-from", ask(tmp_path), "--ways", "sd,none,image", "--steps", 1]
    words += ["--num-frames", 8, "--first-frame", tiny_sd, "--out", tmp_path / "out"]
    assert cli.main([str(w) for w in words]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["artifact"]["step"], found["ways"]) == (2, ["sd", "none", "image"])
    assert (found["settings"]["num_inference_steps"], found["settings"]["num_frames"]) == (1, 8)
    assert len(found["clips"]) == 6
    for entry in found["clips"]:
        assert entry["base"]["shape"] == [8, 64, 64, 3]
        assert entry["base"]["numbers"] == entry["adapted"]["numbers"]
        before, after = (frames_of(tmp_path / "out" / entry[a]["clip"]) for a in table.ARMS)
        assert np.array_equal(before, after)
    assert all(row["difference"]["mean"] == 0 and row["p_value"] == 1 for row in found["table"])
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["green.png", "out", "prompts.jsonl"], "nothing is left beside"
    out = capsys.readouterr().out
    assert "prompts · way image · 2 prompts" in out
    assert out.endswith(f"{tmp_path / 'out'}\n")


def test_a_trained_adapter_does(learnt: Path, tmp_path: Path):
    """The control of the law above."""
    words = ["evaluate", learnt, "--prompts-from", ask(tmp_path), "--ways", "none", "--steps", 1]
    assert cli.main([str(w) for w in [*words, "--num-frames", 8, "--out", tmp_path / "out"]]) == 0
    [first, _] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["clips"]
    before, after = (frames_of(tmp_path / "out" / first[a]["clip"]) for a in table.ARMS)
    assert not np.array_equal(before, after)


def test_gates_decide_the_status_and_are_kept(learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "gates.yaml").write_text("gates:\n- broken frames <= 1\n")
    words = ["evaluate", learnt, "--prompts-from", ask(tmp_path), "--ways", "none", "--steps", 1, "--num-frames", 8]
    words += ["--metrics", "motion", "--gates", tmp_path / "gates.yaml"]
    assert cli.main([str(w) for w in [*words, "--out", tmp_path / "passed"]]) == 0
    assert "passed  broken frames <= 1" in capsys.readouterr().out
    more = ["--gate", "motion amount >= 300", "--out", tmp_path / "failed"]
    assert cli.main([str(w) for w in [*words, *more]]) == 1
    assert "FAILED  motion amount >= 300" in capsys.readouterr().out
    kept = json.loads((tmp_path / "failed" / "evaluation.json").read_text())["gates"]
    assert [gate["passed"] for gate in kept] == [False, True]
    assert kept[0]["margin"] == pytest.approx(kept[0]["value"] - 300)
    silent = ["--gate", "motion >= 0", "--out", tmp_path / "silent"]
    assert cli.main([str(w) for w in [*words, *silent]]) == 2
    assert "no number 'motion'" in capsys.readouterr().err
    assert (tmp_path / "silent" / "evaluation.json").is_file(), "what was made is not lost"


MISTAKES = {
    "evaluate nowhere": "no artifact.json",
    "evaluate {artifact} --ways sdd": "some of sd,none,image",
    "evaluate {artifact} --ways sd,sd": "each once",
    "evaluate {artifact} --metrics fulfilmnt": "of brand, brand_fulfilment, clip_score, directional, ",
    "evaluate {artifact} --gate motion>0.5": "a line such as",
    "evaluate {artifact} --gates nowhere.yaml": "a YAML list of lines",
    "evaluate {artifact} --count 0": "above 0",
    "evaluate {artifact} --prompts-from nowhere.txt": "no such file",
    "evaluate {artifact} --prompts-from {plain} --motions still=1": "held-out scenes of the world",
    "evaluate {artifact} --motions still=2": "between 0 and 1",
    "evaluate {artifact} --motions still=1,flying=0": "'flying'",
    "evaluate {artifact} --out {taken}": "the output exists",
    "evaluate {artifact} --prompts-from {plain} --ways image": "no first frame",
    "evaluate {artifact} --prompts-from {long} --ways none": "at most 16 fit",
    "evaluate {artifact} --prompts-from {plain} --ways none --num-frames 3 --steps 1": "a clip of 3 frames",
    "evaluate {artifact} --prompts-from {plain} --first-frame {plain}": "plain.txt",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_leaves_nothing(
    line: str,
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    places = {"artifact": fresh, "taken": tmp_path / "taken", "plain": tmp_path / "plain.txt"}
    places["long"] = tmp_path / "long.txt"
    places["taken"].mkdir()
    (places["taken"] / "x").touch()
    places["plain"].write_text("a red circle\n")
    places["long"].write_text("a red circle\n" + "a red circle " * 9 + "\n")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(line.format(**places).split()) == 2
    assert MISTAKES[line] in capsys.readouterr().err
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != "evaluations"] == before
    assert list(tmp_path.glob("evaluations/*")) == []


def test_groups_are_words_a_file_can_carry():
    assert {c.name.split("-")[0] for c in heldout(count=1, two_objects=1, seed=0)} == {"one", "two"}
    assert {asked.ONE, asked.TWO, asked.OWN} == {"one object", "two objects", "prompts"}
