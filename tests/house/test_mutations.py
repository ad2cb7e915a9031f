"""A hundred damaged configs and a page of damaged words: each ends in UserErrors or passes; none in a stack trace."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.errors import UserError

HERE = Path(__file__).parent
ALLOW = (*config.ALLOWED, "tests.house.")
COUNT = 100
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
