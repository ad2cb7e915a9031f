"""Damaged configs and a page of damaged words: each ends in UserErrors that name the place, in less than three seconds,
or runs; none in a stack trace. Whole recipes are checked, and a run of a second is damaged and started."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mmtrain import cli, config
from mmtrain.errors import UserError
from tests import tiny

HERE = Path(__file__).parent
ALLOW = (*config.ALLOWED, "tests.house.")
FULL = os.environ.get("RESUME_PROOF") == "full"  # make resume-proof
COUNT, STARTED = (100, 300) if FULL else (60, 12)
SECONDS = 3.0
VALUES: list[Any] = [
    *(None, "", "eight", 3.5, -1, 0, True, 10**30, float("nan"), "???", "${nope}", "${", "${seed", "é\n\x07", "a: b"),
    *([], {}, [1, [2]], {"a": {"b": 1}}, {"_target_": "os.system"}, {"_target_": 5}, {"_target_": None}, {1: 2}),
    *("${shipped:x}", "${shipped:}", "${oc.env:HOME}", "${oc.decode:'['}", "mmtrain.run.Run", "*", "../../etc"),
]
KEYS: list[Any] = ["_partial_", "_args_", "_target_", "sed", "", "a.b", 7, True, "hydra", "defaults", "${x}"]
TARGETS = [
    "mmtrain",
    "mmtrain.",
    "mmtrain..x",
    "mmtrain.run",
    "mmtrain.errors.UserError.x",
    ".",
    " ",
    "mmtrain.run.re.sub",
]


def nodes(tree: Any) -> list[dict[Any, Any]]:
    inner = [node for item in tree.values() for node in nodes(item)] if isinstance(tree, dict) else []
    return [tree, *inner] if isinstance(tree, dict) else inner


def damage(tree: dict[str, Any], draw: random.Random) -> None:
    node = draw.choice(nodes(tree))
    key = draw.choice(list(node)) if node else "x"
    kind = draw.randrange(5)
    if kind == 0:
        node.pop(key, None)
    elif kind == 1:
        node[key] = draw.choice(VALUES)
    elif kind == 2:
        node[draw.choice(KEYS)] = draw.choice(VALUES)
    elif kind == 3:
        name = str(key)
        at = draw.randrange(len(name) + 1)
        node[name[:at] + draw.choice(["", "x", "é"]) + name[at + 1 :]] = node.pop(key, None)
    else:
        node["_target_"] = draw.choice(TARGETS)


def whole(recipe: str) -> dict[str, Any]:
    tree = OmegaConf.to_container(config.compose(recipe))
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def test_damaged_configs_end_in_user_errors(tmp_path: Path):
    recipes = [*config.recipes(), str(HERE / "toy.yaml")]
    trees = {recipe: whole(recipe) for recipe in recipes}
    refused = 0
    for seed in range(COUNT):
        draw = random.Random(seed)
        tree = yaml.safe_load(yaml.safe_dump(trees[recipes[seed % len(recipes)]]))
        for _ in range(draw.choice([1, 1, 2, 5])):
            damage(tree, draw)
        path = tmp_path / f"damaged{seed}.yaml"
        path.write_text("# @package _global_\n" + yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        try:
            found = config.check(config.compose(str(path)), allow=ALLOW)
        except UserError as error:
            found = [error]
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        assert all(isinstance(fault, UserError) and "\n" not in fault.where for fault in found)
        refused += bool(found)
    assert refused > COUNT * 0.6  # some damage is harmless: a default taken away, an equal value


WORDS = [
    *("=", "a=", "~", "+", "++", "seed==1", "@=x", "seed=${", "é=1", "a b=1", "\x00=1", "-x", "{a:1}", "seed=1;2"),
    *("~dataset", "~seed", "~logger", "~recipes", "~hydra", "recipes=nope", "recipes=null", "hydra=1", "hydra=null"),
    *("name='a", "name=", "name=$(ls)", "seed=1e999", "seed.x=1", "seed.x.y=1", "dataset@=x", "dataset@a.b=c"),
    *("a/b=c", "+a/b@c=d", "/dataset=x", "override /dataset=x", "logger=[local,wandb]", "logger=../logger/local"),
    *("adapters.motion.targets.9=x", "adapters.motion.targets[0]=x", "backbone.channels.9=1", "a=${a.b}", "+x=${x}"),
    *("adapters.motion.rank=${..backbone}", "dataset=${backbone}", "hydra/launcher=nope", "seed=${oc.env:NOPE_NOPE}"),
]


@pytest.mark.parametrize("word", WORDS)
def test_damaged_words_end_in_user_errors(word: str):
    try:
        config.check(config.compose(str(HERE / "toy.yaml"), [word]), allow=ALLOW)
    except UserError:
        return


OUT_OF_RANGE: list[Any] = [-1, 0, 10**7, -0.5, 1e30, float("inf")]
KINDS = ("deleted", "misspelt", "wrong type", "out of range", "wrong nesting")


def harm(tree: dict[str, Any], kind: str, draw: random.Random) -> str:
    """Damage one key in a stated way; its name."""
    node, key = draw.choice([(node, key) for node in nodes(tree) for key in node])
    if kind == "deleted":
        del node[key]
    elif kind == "misspelt":
        at = draw.randrange(len(str(key)))
        node[str(key)[:at] + draw.choice(["", "x", "é"]) + str(key)[at + 1 :]] = node.pop(key)
    elif kind == "wrong type":
        node[key] = draw.choice(VALUES)
    elif kind == "out of range":
        # Ten million layers are legal, and are built for hours.
        node[key] = draw.choice([v for v in OUT_OF_RANGE if v != 10**7 or key != "num_hidden_layers"])
    else:
        node[key] = draw.choice([{key: node[key]}, [node[key]], {"_target_": "mmtrain.run.Run", "x": node[key]}])
    return str(key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_run_is_refused_at_once_or_runs(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of those that run, sizes are bounded, so that a legal but huge value costs no hours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmtrain.train.fit.train", lambda job: None)  # the steps themselves are other tests'
    shards = tiny.world(tmp_path / "world")
    words = tiny.words(shards, tmp_path / "runs")
    whole = OmegaConf.to_container(config.compose(words[1], words[2:]))
    refused = 0
    for seed in range(STARTED // len(KINDS) or 1):
        tree = yaml.safe_load(yaml.safe_dump(whole))
        name = harm(tree, kind, random.Random(f"{kind} {seed}"))
        path = tmp_path / "damaged.yaml"
        path.write_text("# @package _global_\n" + yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        before = time.process_time()
        status = cli.main(["train", str(path)])
        spent = time.process_time() - before
        told = capfd.readouterr().err
        assert "Traceback" not in told
        assert status in (0, 1, 2), f"{kind} {seed}, {name}: status {status}"
        if status:
            refused += 1
            assert spent < SECONDS, f"{kind} {seed}, {name}: {spent:.1f} s\n{told}"
            assert told.rstrip().endswith("."), told
    assert refused or not FULL


def test_what_a_library_refuses_of_a_mapping_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    words = tiny.words(tiny.world(tmp_path / "world"), tmp_path / "runs", "~backbone.vision.num_attention_heads")
    assert cli.main(words) == 2
    told = capfd.readouterr().err
    assert "mmtrain.backbone.clip.fresh: The hidden size (16) is not a multiple of the number of" in told
    assert "text and vision as it takes them; correct their keys." in told
