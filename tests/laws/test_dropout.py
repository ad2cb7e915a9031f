"""Laws of an adapter's dropout: at work while it trains, in its own layers alone, keyed, the same behind a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmtrain import cli
from mmtrain.adapter.injected import Injected
from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.batch import Batch
from mmtrain.data.shards import ShardWriter, encode_webp
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import computed_again, drops_out
from mmtrain.run.checkpoints import newest
from mmtrain.sample.generate import evaluating
from mmtrain.train.heldout import SEED, HeldOut
from mmtrain.train.module import TrainModule, train_what_trains
from mmtrain.train.optim import AdamW

POSITIONS = [4, 5]


def batch() -> Batch:
    frames = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(["x", "y"], POSITIONS, ["a red circle", "a blue square"], frames)


def trained(sd: Path, dropout: float, **more: Any) -> TrainModule:
    torch.manual_seed(0)
    backbone = StableDiffusion(path=str(sd))
    adapters = {"style": LoRA(rank=2, alpha=2, targets="attention", dropout=dropout, **more)}
    adapters["style"].attach(backbone)
    for i, weight in enumerate(adapters["style"].named_weights().values()):
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    train_what_trains(backbone, adapters)
    optim = AdamW(lr=1e-3, warmup=1, schedule="constant")
    return TrainModule(backbone=backbone, adapters=adapters, objective=Denoise(), optim=optim, seed=0, steps=9)


def loss(module: TrainModule, step: int) -> Tensor:
    module.step = step
    return module.loss(batch()).per_sample


@pytest.mark.parametrize("dora", [False, True])
def test_it_is_at_work_and_a_function_of_seed_step_and_sample(dora: bool, tiny_sd: Path):
    module, still = trained(tiny_sd, 0.5, dora=dora), trained(tiny_sd, 0.0, dora=dora)
    torch.manual_seed(1)
    first = loss(module, 3)
    torch.manual_seed(2)  # nothing reads the global generator
    assert torch.equal(loss(module, 3), first)
    assert not torch.allclose(first, loss(still, 3), rtol=1e-4)
    with evaluating(module.backbone):
        assert torch.equal(loss(module, 3), loss(still, 3))
    assert torch.equal(loss(module, 3), first)  # and afterwards it is at work again


def test_frozen_layers_have_none(tiny_sd: Path):
    """Their mode is that of evaluation, whatever is injected around them."""
    module = trained(tiny_sd, 0.5)
    own = {part for part in module.backbone.modules() if part.training}
    assert own
    assert {type(part).__module__.split(".")[0] for part in own} == {"peft", "torch"}
    held = {child for layer in own if type(layer).__module__.startswith("peft") for child in layer.modules()}
    assert own <= held
    frozen = [layer.base_layer for layer in held if hasattr(layer, "base_layer")]
    assert not any(part.training for layer in frozen for part in layer.modules())
    assert isinstance(module.adapters["style"], Injected)
    module.adapters["style"].eval()
    assert not any(part.training for part in module.backbone.modules())


def test_blocks_that_are_computed_again_have_it_again(tiny_sd: Path):
    module = trained(tiny_sd, 0.5)
    found: list[tuple[Tensor, ...]] = []
    for again in (False, True):
        if again:
            module.backbone.unet.enable_gradient_checkpointing(computed_again)
            assert module.backbone.unet.mid_block.gradient_checkpointing
            module.backbone.unet.train()  # diffusers computes again in training mode alone
            assert drops_out(module.backbone)
        value = loss(module, 3)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), list(module.weights.values()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dropout") / "shards"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 64, 64, 3), dtype=np.uint8)
    with ShardWriter(folder, max_samples=3) as writer:
        for i, frames in enumerate(pixels):
            facts = b'{"fps": 25, "num_frames": 1}'
            writer.write(f"x{i}", {"webp": encode_webp(frames, 25.0), "txt": b"a red circle", "json": facts})
    return folder


def words(shards: Path, sd: Path, runs: Path, *more: str) -> list[str]:
    small = ["dataset.num_frames=1", "trainer.threads=1", "trainer.batch_size=2", "trainer.steps=4", "logger=null"]
    given = ["cache=null", f"dataset.shards={shards}", f"backbone.path={sd}", f"folder={runs}"]
    held = ["+dataset@heldout=world_frames", f"heldout.shards={shards}", "trainer.heldout_batches=1"]
    return ["train", "sd_lora", *small, *given, *held, "trainer.best=heldout", "trainer.checkpoint_every=2", *more]


def weights(runs: Path) -> dict[str, Tensor]:
    [run] = runs.iterdir()
    return load_file(newest(run / "checkpoints") / "weights.safetensors")


def test_a_resumed_run_has_it_again(shards: Path, tiny_sd: Path, tmp_path: Path):
    """Also behind a measurement on held-out samples, which is without."""
    assert cli.main(words(shards, tiny_sd, tmp_path / "still")) == 0
    dropped = "adapters.style.dropout=0.5"
    assert cli.main(words(shards, tiny_sd, tmp_path / "whole", dropped)) == 0
    wanted = weights(tmp_path / "whole")
    assert any(not torch.equal(wanted[name], value) for name, value in weights(tmp_path / "still").items())
    [run] = (tmp_path / "whole").iterdir()
    (run / "checkpoints" / "step-00000004" / "state.json").write_text("torn")
    assert cli.main(["train", "--resume", str(run)]) == 0
    again = weights(tmp_path / "whole")
    assert all(torch.equal(again[name], value) for name, value in wanted.items())


def test_compiling_it_is_refused(shards: Path, tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more = ["adapters.style.dropout=0.5", "trainer.compile=true"]
    assert cli.main(words(shards, tiny_sd, tmp_path, *more)) == 2
    assert "trainer.compile: a network with dropout" in capsys.readouterr().err


class Told:
    """A stream that says for which seed it was asked."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def loader(self, *, seed: int, **how: int) -> list[Batch]:
        self.seeds.append(seed)
        return [batch()]


def test_runs_of_different_seeds_are_measured_on_the_same_samples(tiny_sd: Path, tmp_path: Path):
    stream, found = Told(), []
    for seed in (0, 7):
        module = trained(tiny_sd, 0.5)
        module.seed = seed
        measure = HeldOut(stream, batch_size=2, batches=1, file=tmp_path / f"{seed}.csv")  # type: ignore[arg-type]
        found.append(measure(module, 0, 1))
    assert stream.seeds == [SEED, SEED]
    assert found[0] == found[1]
