"""Laws of the cache: it holds what direct encoding gives, is used again, refuses a stranger, and goes on when torn."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.data.cache import encode_shards
from mmtrain.data.shards import write_world
from mmtrain.data.source import Source
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng

ROOT = Path(__file__).resolve().parents[2]


def encode(frames: Tensor) -> dict[str, Tensor]:
    """Stands for a frozen encoder: per-sample, float outputs of two ranks and an integer one."""
    return {
        "latents": frames[..., ::4, ::4] * 0.5,
        "mean": frames.mean((1, 2, 3, 4)),
        "count": torch.full((len(frames), 2), 3, dtype=torch.int64),
    }


def never(frames: Tensor) -> dict[str, Tensor]:
    raise AssertionError("encoded again")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "s", split="train", count=23, seed=3, shard_size=6)


@pytest.fixture(scope="module")
def source(world: Path) -> Source:
    return Source(shards=str(world), num_frames=16, size=32)


def cached(
    source: Source, folder: Path, how: Callable[[Tensor], dict[str, Tensor]] = encode, **changed: object
) -> Path:
    settings: dict[str, object] = {"encoder_id": "tiny", "batch_size": 4, "dtype": torch.float16, **changed}
    return encode_shards(source, folder, encode=how, **settings)  # type: ignore[arg-type]


def tars(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def cache(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached(source, tmp_path_factory.mktemp("cache") / "new" / "c")


def test_batches_from_the_cache_are_the_encoded_batches(source: Source, cache: Path) -> None:
    stored = Source(shards=str(cache))
    assert stored.kind == "encoded"
    pairs = zip(
        source.loader(seed=4, batch_size=5, steps=9),
        stored.loader(seed=4, batch_size=5, steps=9, num_workers=1),
        strict=True,
    )
    for pixels, batch in pairs:
        assert pixels.frames is not None
        assert batch.frames is None
        assert (batch.keys, batch.positions, batch.captions) == (pixels.keys, pixels.positions, pixels.captions)
        direct = encode(pixels.to("cpu").frames)
        assert set(batch.encoded) == set(direct)
        assert torch.equal(batch.encoded["count"], direct["count"])
        for name in ("latents", "mean"):
            assert batch.encoded[name].dtype == torch.float32
            assert torch.equal(batch.encoded[name], direct[name].half().float())


def test_float32_is_kept_exactly(source: Source, tmp_path: Path) -> None:
    stored = Source(shards=str(cached(source, tmp_path / "c", dtype=torch.float32)))
    pixels = next(iter(source.loader(seed=4, batch_size=5, steps=1)))
    batch = next(iter(stored.loader(seed=4, batch_size=5, steps=1)))
    assert pixels.frames is not None
    assert torch.equal(batch.encoded["latents"], encode(pixels.to("cpu").frames)["latents"])


def test_denoising_from_the_cache_gives_the_losses_of_the_pixels(
    world: Path, tiny_svd: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    """With the same noise. Four frames span a clip: of a longer one, pixels give any part."""
    pixels = Source(shards=str(world), num_frames=4, stride=5, size=32)
    backbone = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    how = {"encoder_id": backbone.encoder_id, "dtype": torch.float32}
    stored = Source(shards=str(cached(pixels, tmp_path / "c", backbone.encode, **how)))
    losses = [
        [
            Denoise()(backbone, batch.to("cpu"), Rng(0, step, batch.positions)).per_sample.detach()
            for step, batch in enumerate(got)
        ]
        for got in (s.loader(seed=4, batch_size=5, steps=2) for s in (pixels, stored))
    ]
    assert not torch.allclose(losses[0][0], losses[0][1], rtol=1e-2), "every batch has one loss"
    for direct, from_cache in zip(*losses, strict=True):
        torch.testing.assert_close(from_cache, direct, rtol=1e-5, atol=1e-6)


def test_captions_and_facts_are_carried_over(source: Source, cache: Path) -> None:
    stored = Source(shards=str(cache))
    assert stored.keys == source.keys
    for i in range(len(source)):
        assert {s: stored.raw(i)[s] for s in ("txt", "json")} == {s: source.raw(i)[s] for s in ("txt", "json")}


def test_the_same_identity_is_used_again(source: Source, cache: Path) -> None:
    before = tars(cache)
    assert cached(source, cache, never) == cache
    assert tars(cache) == before


@pytest.mark.parametrize(
    ("changed", "field"), [({"encoder_id": "other"}, "encoder_id"), ({"dtype": torch.float32}, "dtype")]
)
def test_another_encoder_or_dtype_is_refused(
    source: Source, cache: Path, changed: dict[str, object], field: str
) -> None:
    with pytest.raises(UserError, match=f"{field} is"):
        cached(source, cache, never, **changed)


@pytest.mark.parametrize(("look", "field"), [({"num_frames": 8, "size": 32}, "num_frames"), ({"size": 16}, "size")])
def test_another_look_is_refused(world: Path, cache: Path, look: dict[str, int], field: str) -> None:
    with pytest.raises(UserError, match=f"{field} is"):
        cached(Source(shards=str(world), **look), cache, never)  # type: ignore[arg-type]


def test_other_content_is_refused(cache: Path, tmp_path: Path) -> None:
    other = write_world(tmp_path / "s", split="train", count=23, seed=4, shard_size=6)
    with pytest.raises(UserError, match="content is"):
        cached(Source(shards=str(other), num_frames=16, size=32), cache, never)


def test_a_folder_that_holds_something_else_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        cached(source, tmp_path, never)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def kill_after(calls: int, source: Source, folder: Path) -> None:
    """Encodes in a child that dies, as by SIGKILL, in the middle of a shard."""
    made = 0

    def dying(frames: Tensor) -> dict[str, Tensor]:
        nonlocal made
        made += 1
        if made > calls:
            os._exit(9)
        return encode(frames)

    child = os.fork()
    if not child:
        cached(source, folder, dying)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_killed_encoding_goes_on_after_its_last_whole_shard(source: Source, cache: Path, tmp_path: Path) -> None:
    kill_after(5, source, tmp_path / "c")  # two batches a shard: two shards are whole, the third is torn
    kill_after(1, source, tmp_path / "c")  # and again in the third
    assert not (tmp_path / "c").exists()
    calls: list[int] = []

    def counted(frames: Tensor) -> dict[str, Tensor]:
        calls.append(len(frames))
        return encode(frames)

    cached(source, tmp_path / "c", counted)
    assert calls == [4, 2, 4, 1]
    assert tars(tmp_path / "c") == tars(cache)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]
    assert not [p for p in (tmp_path / "c").iterdir() if "staging" in p.name]


def test_processes_at_once_share_the_shards(source: Source, cache: Path, tmp_path: Path) -> None:
    """Three of them, of which one dies with a shard in its hands, which another then writes."""
    children = []
    for calls in (1, 99, 99):
        if not (child := os.fork()):
            cached(source, tmp_path / "c", tiring(calls, tmp_path))
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes[1:] == [0, 0]
    assert tars(tmp_path / "c") == tars(cache)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["c"]
    made = sum(len(p.read_text()) for p in tmp_path.glob("calls-*"))
    assert made == (8 if codes[0] == 0 else 10)  # two batches a shard; those of the torn one twice


def tiring(calls: int, folder: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """An encoder that leaves a mark for each call, and dies after so many."""
    marks = folder / f"calls-{os.getpid()}"

    def tire(frames: Tensor) -> dict[str, Tensor]:
        with marks.open("a") as file:
            file.write("x")
        if len(marks.read_text()) > calls:
            os._exit(9)
        time.sleep(0.05)
        return encode(frames)

    return tire


def test_half_a_cache_of_another_encoder_is_not_continued(source: Source, cache: Path, tmp_path: Path) -> None:
    kill_after(5, source, tmp_path / "c")
    assert tars(cached(source, tmp_path / "c", lambda f: {"mean": f.mean((1, 2, 3, 4))}, encoder_id="b")).keys() == (
        tars(cache).keys()
    )
    assert set(Source(shards=str(tmp_path / "c")).encoded(0)) == {"mean"}
    assert json.loads((tmp_path / "c" / "cache.json").read_text())["encoder_id"] == "b"


def test_an_encoding_that_is_not_finite_does_not_pass(source: Source, tmp_path: Path) -> None:
    def broken(frames: Tensor) -> dict[str, Tensor]:
        return {"mean": frames.mean((1, 2, 3, 4)) / 0}

    with pytest.raises(UserError, match=r"'mean'.*not finite"):
        cached(source, tmp_path / "c", broken)
    assert not (tmp_path / "c").exists()
    [staging] = tmp_path.iterdir()
    assert list(staging.iterdir()) == []


def test_a_cache_cannot_be_encoded_again(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoder outputs"):
        cached(Source(shards=str(cache)), tmp_path / "c", never)


def test_the_verb_encodes_on_several_devices_what_one_would(
    world: Path, tiny_svd: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    """Through Lightning, which starts the command again."""
    words = [f"dataset.shards={world}", f"backbone.path={tiny_svd}", f"backbone.text_path={tiny_clip}"]
    words += ["dataset.num_frames=3", "dataset.stride=1", "dataset.size=64", "trainer.threads=1", "trainer.devices=2"]
    command = [sys.executable, "-m", "mmtrain", "shards", "encode", "svd_text_bridge", *words, "--to"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path / "c")], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'c'}\n"), done.stderr
    pixels = Source(shards=str(world), num_frames=3, size=64)
    backbone = StableVideoDiffusion(path=str(tiny_svd), text_path=str(tiny_clip))
    cached(pixels, tmp_path / "one", backbone.encode, encoder_id=backbone.encoder_id, batch_size=16)
    assert tars(tmp_path / "c") == tars(tmp_path / "one")
    assert (tmp_path / "c" / "cache.json").read_text() == (tmp_path / "one" / "cache.json").read_text()
