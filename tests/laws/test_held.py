"""Laws of frozen weights that are held in 16 bits: a step's numbers stay as they were, and the plan knows the bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmtrain import cli, config
from mmtrain.artifact import attached
from mmtrain.backbone import codec
from mmtrain.batch import Batch, Loss
from mmtrain.data.shards import ShardWriter, encode_webp
from mmtrain.errors import UserError
from mmtrain.train import loop
from mmtrain.train import plan as planning
from mmtrain.train.held import computing, hold, idle, set_aside
from mmtrain.train.lighten import lighten
from mmtrain.train.measure import measured
from mmtrain.train.module import TrainModule

SVD = ["backbone=svd", "backbone.text_path=null", "adapters.style.targets=temporal", "dataset.num_frames=3"]
MIXED = ["dataset.shards=nowhere", "dataset.size=64", "trainer.batch_size=2", "trainer.precision=bf16-mixed"]


def composed(tiny: Path, *words: str) -> Any:
    return config.compose("sd_lora", [*MIXED, f"backbone.path={tiny}", *words])


def step(cfg: Any) -> tuple[Any, dict[str, Tensor], Any]:
    """The backbone as a run has it, its LoRA filled; and what makes a step's loss and gradients."""
    backbone = config.build(cfg.backbone)
    adapters = attached(backbone, cfg.adapters)
    draw = torch.Generator().manual_seed(0)
    weights = dict(adapters["style"].named_weights())
    for weight in weights.values():
        weight.data = 0.1 * torch.randn(weight.shape, generator=draw)
    schedule = config.build(cfg.trainer)
    lighten(backbone, schedule)
    hold(backbone, schedule)
    frames = cfg.dataset.num_frames
    latents, level, condition = backbone.example(2, frames, 64, 64)
    latents = torch.randn(latents.shape, generator=draw)
    condition = {name: torch.randn(part.shape, generator=draw) for name, part in condition.items()}

    def work() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = backbone.predict(latents, level, condition)
        loss: Tensor = (found - latents).square().mean()
        loss.backward()
        return loss.detach()

    return backbone, weights, work


@pytest.mark.parametrize("more", [[], ["trainer.checkpointing=true"]])
@pytest.mark.parametrize("family", ["sd", "svd"])
def test_a_step_is_the_same_bit_for_bit(family: str, more: list[str], tiny_sd: Path, tiny_svd: Path):
    tiny, words = {"sd": (tiny_sd, ["dataset.num_frames=1"]), "svd": (tiny_svd, SVD)}[family]
    found = []
    for bits in (32, 16):
        backbone, weights, work = step(composed(tiny, *words, *more, f"trainer.frozen_bits={bits}"))
        found.append((work(), *(weight.grad for weight in weights.values())))
        frozen = [weight for weight in backbone.network.parameters() if not weight.requires_grad]
        halved = sum(weight.numel() for weight in frozen if weight.dtype == torch.bfloat16)
        share = halved / sum(weight.numel() for weight in frozen)
        assert share > 0.9 if bits == 16 else share == 0
        assert all(weight.dtype == torch.float32 for weight in weights.values())
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("bits", [32, 16])
def test_the_plan_knows_the_bytes_of_mixed_precision(bits: int, tiny_sd: Path):
    cfg = composed(tiny_sd, "dataset.num_frames=1", f"trainer.frozen_bits={bits}")
    made = planning.plan(cfg)
    backbone, _, work = step(cfg)
    held = sum(t.numel() * t.element_size() for t in [*backbone.parameters(), *backbone.buffers()])
    assert made.phases["load"] == held
    real = measured(work, outline=False)
    assert made.phases["step"] - held - 12 * made.trainable == pytest.approx(real.peak, rel=0.1)


def test_what_is_not_asked_in_a_step_computes_in_16_bits_too(tiny_sd: Path):
    backbone, _, _ = step(composed(tiny_sd, "dataset.num_frames=1", "trainer.frozen_bits=16"))
    latents, level, condition = backbone.example(1, 1, 64, 64)
    given = torch.zeros_like(latents), level, {name: torch.zeros_like(part) for name, part in condition.items()}
    with pytest.raises(RuntimeError, match="type"):
        backbone.predict(*given)
    with computing(backbone), torch.no_grad():
        assert backbone.predict(*given).isfinite().all()
    plain, _, _ = step(composed(tiny_sd, "dataset.num_frames=1"))
    with computing(plain):
        assert not torch.is_autocast_enabled("cpu")


def test_captions_are_read_in_32_bits_whoever_asks_first(tiny_sd: Path):
    still = torch.zeros(1, dtype=torch.bool)
    found = []
    for mixed in (False, True):
        backbone, _, _ = step(composed(tiny_sd, "dataset.num_frames=1"))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append(backbone.condition({}, ["a red circle"], drop_text=still, drop_image=still)["text"])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sd_lora", "trainer.precision=32-true"], "a mixed precision"),
        (["sd_lora", "trainer.precision=bf16-mixed", "trainer.strategy=fsdp"], "no fsdp"),
        (["align_adapter", "trainer.precision=bf16-mixed"], "16 for a CLIP"),
    ],
)
def test_where_it_means_nothing_it_is_refused(words: list[str], told: str):
    with pytest.raises(UserError, match=told):
        planning.plan(config.compose(words[0], ["dataset.shards=nowhere", "trainer.frozen_bits=16", *words[1:]]))


def write_pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64, 3), dtype=np.uint8)
    with ShardWriter(folder, max_samples=4) as writer:
        for i, frames in enumerate(pixels):
            facts = b'{"fps": 25, "num_frames": 1}'
            writer.write(f"x{i}", {"webp": encode_webp(frames, 25.0), "txt": b"a red circle", "json": facts})


def test_a_run_gives_the_same_losses_and_previews_and_holds_out(tiny_sd: Path, tmp_path: Path):
    write_pictures(tmp_path / "shards")
    words = [f"dataset.shards={tmp_path}/shards", "dataset.num_frames=1", f"backbone.path={tiny_sd}", "logger=null"]
    words += ["trainer.precision=bf16-mixed", "trainer.batch_size=2", "trainer.steps=2", f"cache={tmp_path}/cache"]
    words += ["+dataset@heldout=world_frames", f"heldout.shards={tmp_path}/shards", "trainer.heldout_batches=1"]
    words += ["trainer.best=heldout", "preview=clips", "preview.prompts=[a red circle]", "preview.every=2"]
    words += ["preview.num_inference_steps=1"]
    found = []
    for bits in (32, 16):
        folder = tmp_path / f"runs-{bits}"
        assert cli.main(["train", "sd_lora", *words, f"folder={folder}", f"trainer.frozen_bits={bits}"]) == 0
        [run] = folder.iterdir()
        found.append((run / "metrics.csv").read_text())
        assert (run / "previews" / "step-000002.png").is_file()
        held = [float(line.split(",")[1]) for line in (run / "heldout.csv").read_text().splitlines()[1:]]
        assert len(held) == 2
        assert all(np.isfinite(held))
    assert found[0] == found[1]


def test_threads_are_chosen_by_steps_in_the_run_s_precision(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_pictures(tmp_path / "shards")
    timed: list[bool] = []

    def once(work: Callable[[], None]) -> int:
        loss = TrainModule.loss

        def watched(module: TrainModule, batch: Batch) -> Loss:
            timed.append(torch.is_autocast_enabled("cpu"))
            return loss(module, batch)

        with monkeypatch.context() as patch:
            patch.setattr(TrainModule, "loss", watched)
            work()
        return 1

    monkeypatch.setattr(loop, "calibrate", once)
    words = [f"dataset.shards={tmp_path}/shards", "dataset.num_frames=1", f"backbone.path={tiny_sd}", "logger=null"]
    words += ["trainer.batch_size=2", "trainer.steps=1", f"cache={tmp_path}/cache", f"folder={tmp_path}/runs"]
    for precision in ("bf16-mixed", "32-true"):
        assert cli.main(["train", "sd_lora", *words, f"trainer.precision={precision}", "trainer.threads=auto"]) == 0
    assert timed == [True, False]


def test_what_only_encodes_is_left_out_where_the_cache_has_it(tiny_svd: Path):
    words = [*SVD, "trainer.accelerator=auto", "cache=somewhere"]
    cfg = composed(tiny_svd, *words)
    backbone, _, work = step(cfg)
    before, names = work(), idle(cfg, backbone)
    assert names == ["vae", "image_encoder"]
    aside = [weight for name in names for weight in getattr(backbone, name).parameters()]
    held = [*aside, *(buffer for name in names for buffer in getattr(backbone, name).buffers())]
    size = sum(part.numel() * part.element_size() for part in held)
    made = planning.plan(cfg)
    set_aside(backbone, names)
    assert not {id(weight) for weight in aside} & {id(weight) for weight in backbone.parameters()}
    assert torch.equal(work(), before)
    assert backbone.encode(torch.zeros(1, 3, 3, 64, 64))["latents"].isfinite().all()
    here = planning.plan(composed(tiny_svd, *words, "trainer.accelerator=cpu"))
    assert here.phases["step"] - made.phases["step"] == size
    assert here.phases["encode"] == made.phases["encode"]
    for more in (["cache=null"], ["preview=clips", "preview.prompts=[x]"], ["objective=fair"]):
        assert idle(composed(tiny_svd, *words, *more), backbone) == []
    assert idle(composed(tiny_svd, *words, "+dataset@heldout=world_frames", "heldout.shards=x"), backbone) == []


def test_many_pixels_are_encoded_in_portions(monkeypatch: pytest.MonkeyPatch, tiny_sd: Path):
    backbone = config.build(composed(tiny_sd).backbone)
    frames = torch.rand(2, 3, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = codec.encode_clip(backbone.vae, frames)
    monkeypatch.setattr(codec, "AT_ONCE", 4 * 16 * 32)
    assert [len(part) for part in codec.in_portions(frames.flatten(0, 1))] == [4, 2]
    for name, part in codec.encode_clip(backbone.vae, frames).items():
        torch.testing.assert_close(part, whole[name])
    monkeypatch.setattr(codec, "AT_ONCE", 1)
    assert len(codec.in_portions(frames.flatten(0, 1))) == 6
