"""The law of configs: every fault is found before anything is built, all together, each with what to do."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.config.target import parameters
from mmtrain.errors import UserError, UserErrors
from mmtrain.run import resolved
from tests.house import targets

TOY = str(Path(__file__).parent / "toy.yaml")
ALLOW = (*config.ALLOWED, "tests.house.")


def faults(*overrides: str) -> dict[str, str]:
    found = config.check(config.compose(TOY, list(overrides)), allow=ALLOW)
    return {fault.where: str(fault) for fault in found}


def test_a_sound_config_has_no_fault():
    assert faults() == {}
    assert faults("backbone.pooler=null", "dataset.size=null", "optim.lr=1", "trainer.threads=2") == {}


HOLES = {
    "+sed=1": ("sed", "perhaps you meant seed"),  # a key that plain Hydra adds and ignores
    "sed=1": ("sed", "perhaps you meant seed"),
    "adapters.motion.rank=eight": ("adapters.motion.rank", "'eight' (str); int"),
    "adapters.motion.rnk=8": ("adapters.motion.rnk", "perhaps you meant rank"),
    "backbone.pooler.knd=mean": ("backbone.pooler.knd", "perhaps you meant kind"),
    "backbone.pooler.kind=men": ("backbone.pooler.kind", "perhaps you meant mean"),
    "dataset.shards=???": ("dataset.shards", "still ???"),
    "~optim.lr": ("optim.lr", "missing; float"),
    "optim.lr=fast": ("optim.lr", "float"),
    "optim.lr=nan": ("optim.lr", "float"),
    "optim.btas=[0.9,0.99]": ("optim.btas", "perhaps you meant betas"),  # beside **kwargs, which would swallow it
    "optim.betas=[0.9]": ("optim.betas", "1 items; 2"),
    "optim.betas=[0.9,x]": ("optim.betas[1]", "float"),
    "objective.weights.denoise=x": ("objective.weights.denoise", "float"),
    "adapters.motion.targets=to_v": ("adapters.motion.targets", "list[str]"),
    "adapters.motion.targets=[to_v,true]": ("adapters.motion.targets[1]", "quotes"),  # what YAML makes of `on`
    "seed=true": ("seed", "int"),
    "seed=1.5": ("seed", "int"),
    "trainer.deterministic=1": ("trainer.deterministic", "bool"),
    "trainer.threads=atuo": ("trainer.threads", "int or one of auto"),
    "dataset.size=[64]": ("dataset.size", "int"),
    "backbone.path=null": ("backbone.path", "Path"),
    "heldout=world": ("heldout", "a mapping with a _target_"),
    "backbone.pooler._target_=tests.house.targets.Lora": ("backbone.pooler._target_", "builds a Pooler"),
    "name=${nme}": ("name", "interpolation"),
    "name=${name}": ("name", "interpolation"),
    "_target_=os.system": ("_target_", "mmtrain.run.Run"),
    "logger.tensorboard.save_dir=x": ("logger.tensorboard.save_dir", "mmtrain itself"),
    "logger.tensorboard.nam=x": ("logger.tensorboard.nam", "perhaps you meant name"),
}


@pytest.mark.parametrize("override", HOLES)
def test_each_hole_is_closed(override: str):
    where, says = HOLES[override]
    found = faults(override)
    assert says in found[where], found


TARGETS = {
    "os.system": "outside the allowlist",
    "builtins.eval": "outside the allowlist",
    "mmtrainx.evil.Thing": "outside the allowlist",
    "tests.house.targets.Sourc": "perhaps you meant Source",
    "tests.house.targts.Source": "perhaps you meant targets",
    "tests.house.targets.os.system": "no module",
    "tests.house.targets.Path": "has no Path",  # imported there, not at home there
    "tests.house.targets.__name__": "has no __name__",
    "tests.house.targets": "has no targets",
    "mmtrain.": "has no",
    "mmtrain..run": "no module",
    "": "outside the allowlist",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_a_class_or_function_at_home_inside_the_allowlist(target: str):
    assert TARGETS[target] in faults(f"dataset._target_='{target}'")["dataset._target_"]


def test_a_target_outside_the_allowlist_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "outside the allowlist" in faults("dataset._target_=evil_module.Thing")["dataset._target_"]


def test_a_module_that_cannot_be_imported_is_a_fault_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_module.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = config.compose(TOY, ["dataset._target_=broken_module.Thing", "seed=x"])
    found = {f.where: str(f) for f in config.check(cfg, allow=(*ALLOW, "broken_module."))}
    assert "nowhere_at_all" in found["dataset._target_"]
    assert "seed" in found


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_the_keys_of_hydras_instantiate_are_refused(key: str):
    assert "remove it" in faults(f"+adapters.motion.{key}=true")[f"adapters.motion.{key}"]


def test_a_target_that_is_no_text_is_refused():
    assert "a dotted name" in faults("dataset._target_=5")["dataset._target_"]
    assert "a dotted name" in faults("dataset._target_=[a]")["dataset._target_"]


def test_all_faults_come_together():
    words = [
        "+sed=1",
        "adapters.motion.rank=eight",
        "adapters.motion.alhpa=2",
        "~optim.lr",
        "trainer._target_=os.system",
    ]
    cfg = config.compose(TOY, words)
    found = config.check(cfg, allow=ALLOW)
    where = ["adapters.motion.rank", "adapters.motion.alhpa", "optim.lr", "trainer._target_", "sed"]
    assert [f.where for f in found] == where
    with pytest.raises(UserErrors) as raised:
        config.checked(config.compose(TOY, words))
    assert len(raised.value.errors) > len(where)  # the toy's own targets are outside the usual allowlist


COMPOSING = {
    "logger=wadb": ("logger", "perhaps you meant wandb"),
    "lgger@x=local": ("lgger", "perhaps you meant logger"),
    "logger@x=local": ("logger@x", "logger"),
    "seed=[1,2": ("seed=[1,2", "grammar"),
    "seed": ("seed", "grammar"),
    "seed=1,2": ("seed", "add -m"),
    "seed=range(1,3)": ("seed", "add -m"),
    "logger=5": ("config", "must be a string or a list"),
    "adapters=[1]": ("adapters", "DictConfig"),
    "hydra.mode=FOO": ("hydra.mode", "FOO"),
}


@pytest.mark.parametrize("override", COMPOSING)
def test_hydras_errors_become_ours(override: str):
    where, says = COMPOSING[override]
    with pytest.raises(UserError) as raised:
        config.compose(TOY, [override])
    assert raised.value.where == where
    assert says in str(raised.value)


def test_an_unknown_recipe_lists_the_recipes():
    known = config.recipes()
    with pytest.raises(UserError, match="unknown recipe") as raised:
        config.compose("nothing_like_it")
    assert all(name in str(raised.value) for name in known)
    if known:
        with pytest.raises(UserError, match=f"perhaps you meant {known[0]}"):
            config.compose(known[0][:-1])


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b", "\xff\xfe", "a: !!python/object:os.system x", "name: '${'"])
def test_a_recipe_that_is_no_config_is_said_so(text: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_bytes(b"# @package _global_\n" + text.encode("latin-1"))
    with pytest.raises(UserError):
        config.compose(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="no such recipe file"):
        config.compose(str(tmp_path / "yours.yaml"))


def test_a_recipe_of_ones_own_can_build_on_another(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(Path(TOY).read_text())
    mine = tmp_path / "mine.yaml"
    mine.write_text("# @package _global_\ndefaults:\n  - /recipes/base\n  - _self_\nname: mine\nseed: 7\n")
    cfg = config.compose(str(mine), ["optim.lr=0.5"])
    assert (cfg.name, cfg.seed, cfg.optim.lr, cfg.trainer.steps) == ("mine", 7, 0.5, 10)
    assert config.check(cfg, allow=ALLOW) == []


def test_null_takes_a_groups_choice_away():
    assert config.compose(TOY, ["logger=null"]).logger == {}


def test_build_calls_constructors_inside_out_with_the_types_they_ask_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmtrain.config.target.ALLOWED", ALLOW)
    monkeypatch.setattr("mmtrain.config.node.locate", lambda target: config.locate(target, allow=ALLOW))
    cfg = config.compose(TOY, ["optim.betas=[0,1]"])
    backbone = config.build(cfg.backbone)
    assert isinstance(backbone.pooler, targets.Pooler)
    assert backbone.path == Path(config.shipped("svd"))
    assert backbone.channels == (32, 64)
    lora = config.build(cfg.adapters.motion)
    assert (lora.rank, lora.alpha, lora.targets) == (8, 8.0, ["to_v", "to_out.0"])
    assert isinstance(lora.alpha, float)
    optim = config.build(cfg.optim, foreach=False)
    assert (optim.betas, optim.others) == ((0.0, 1.0), {"foreach": False})
    assert config.build(cfg.trainer)["steps"] == 10


def test_build_refuses_what_the_allowlist_does():
    with pytest.raises(UserError, match="outside the allowlist"):
        config.build(OmegaConf.create({"_target_": "os.system", "command": "true"}))


def test_annotations_that_cannot_be_resolved_are_left_open():
    def half(*, a: "Unknown", b: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Nothing."""

    named, _ = parameters(half)
    assert set(named) == {"a", "b"}


def test_parts_of_a_config_that_come_from_data_are_checked_too():
    lora = {"_target_": "tests.house.targets.Lora", "rank": 4, "alpha": 4.0, "targets": ["to_v"]}
    cfg = config.checked_parts({"adapters": {"motion": lora}, "seed": 1}, allow=ALLOW)
    assert cfg.adapters.motion.rank == 4
    bad = {"motion": {**lora, "rank": "4"}, "evil": {"_target_": "os.system", "command": "true"}}
    parts = {"adapters": {**bad, "sly": {**lora, "targets": ["${oc.env:HOME}"]}}, "seed": None, "sed": 1}
    with pytest.raises(UserErrors) as raised:
        config.checked_parts(parts, allow=ALLOW)
    found = [fault.where for fault in raised.value.errors]
    first = ["adapters.sly.targets[0]", "adapters.motion.rank", "adapters.evil._target_"]
    assert found == [*first, "seed", "sed"]


def test_native_precision_is_what_the_machine_multiplies_fastest(monkeypatch: pytest.MonkeyPatch):
    """The recorded config holds the outcome, so that a run again elsewhere computes the same."""
    machines = ((True, True, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true"))
    for tiles, products, wanted in machines:
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda has=tiles: has)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda has=products: has)
        cfg = config.compose("pretrain_clip", ["trainer.precision=${native_precision:cpu}"])
        assert resolved(config.checked(cfg))["trainer"]["precision"] == wanted
