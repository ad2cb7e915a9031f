"""Encoder outputs as shards: what is frozen is computed once, and training reads it in the place of pixels.

The cache mirrors its source shard for shard and sample for sample, so that order, captions and keys stay the same. What
an encoder is, this file does not know: it is handed a function.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mmtrain.batch import to_unit
from mmtrain.data.claim import Claim
from mmtrain.data.decode import BadSample, decode
from mmtrain.data.index import Index
from mmtrain.data.source import Source, read_members
from mmtrain.data.tar import TarWriter
from mmtrain.errors import UserError

IDENTITY = "cache.json"
VERSION = 2

Encode = Callable[[Tensor], dict[str, Tensor]]
Entry = tuple[str, Tensor, dict[str, bytes]]  # key, frames [t c h w] in [-1, 1], members to carry over


def identity(source: Source, encoder_id: str, dtype: torch.dtype) -> dict[str, object]:
    """What must be equal for a cache to be used again."""
    return {
        "version": VERSION,
        "content": source.fingerprint,
        "encoder_id": encoder_id,
        "num_frames": source.look.num_frames,
        "stride": source.look.stride,
        "size": source.look.size,
        "fps": source.look.fps,
        "dtype": str(dtype).removeprefix("torch."),
    }


def place(root: str | Path, source: Source, encoder_id: str, dtype: torch.dtype = torch.float16) -> Path:
    """The folder below ``root`` for the cache of this source and encoder: one per identity, so that none is refused."""
    total = hashlib.blake2b(json.dumps(identity(source, encoder_id, dtype)).encode(), digest_size=6)
    return Path(root) / f"{source.fingerprint[:8]}-{total.hexdigest()}"


def encode_shards(
    source: Source,
    folder: str | Path,
    *,
    encode: Encode,
    encoder_id: str,
    batch_size: int,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes ``encode``'s outputs for every sample as ``key.safetensors``, with captions and facts carried over.

    A finished cache of the same identity is returned as it is; an interrupted one goes on after its last whole shard.
    A longer clip gives its middle window of ``num_frames``. Samples that do not decode are counted in ``source.bad``
    and left out, up to the source's ``max_bad_fraction``.

    Args:
        encode: frames float32 ``[b t c h w]`` in [-1, 1] → tensors by name, first axis b.
        encoder_id: hash of the encoder's weights and preprocessing.
        dtype: what floating-point outputs are stored as.
        progress: called with (samples done, samples) after each batch.

    Raises:
        UserError: naming the field, if the folder holds a cache of another identity, or something else.
    """
    folder = Path(folder).absolute()
    if source.kind == "encoded":
        raise UserError(
            f"data source {source.shards}", "encoder outputs", "pixels to encode", "point at the pixels' shards"
        )
    wanted = identity(source, encoder_id, dtype)
    with Claim(folder):
        if folder.exists() and any(folder.iterdir()):
            check_identity(folder, wanted)
            return folder
        staging = folder.with_name(f".{folder.name}.partial")
        _open_staging(staging, wanted)
        for number, shard in enumerate(source.index.shards):
            place = staging / f"{number:06d}.tar"
            first = int(source.index.starts[number])
            if not place.exists():
                _encode_shard(source, range(first, first + len(shard)), place, encode, batch_size, dtype, progress)
        Index.of(staging)
        if folder.exists():
            folder.rmdir()
        os.replace(staging, folder)
        return folder


def check_identity(folder: Path, wanted: dict[str, object]) -> None:
    """Raises UserError naming each field in which the cache in ``folder`` differs from what is wanted."""
    try:
        found = json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError):
        fix = "choose a new or empty folder for the cache"
        raise UserError(f"cache {folder}", "the folder holds something else", f"a cache ({IDENTITY})", fix) from None
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        came = ", ".join(f"{name} is {found.get(name)!r}" for name in differing)
        right = ", ".join(f"{name} {wanted[name]!r}" for name in differing)
        fix = "choose another folder, or remove this cache to have it written again"
        raise UserError(f"cache {folder}", came, right, fix)


def _open_staging(staging: Path, wanted: dict[str, object]) -> None:
    """An interrupted cache of the same identity, or a new one: half a cache of another identity is worth nothing."""
    try:
        check_identity(staging, wanted)
    except UserError:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        (staging / IDENTITY).write_text(json.dumps(wanted, indent=1) + "\n")


def _encode_shard(
    source: Source,
    samples: range,
    place: Path,
    encode: Encode,
    batch_size: int,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> None:
    tar = TarWriter(place)
    try:
        for start in range(samples.start, samples.stop, batch_size):
            numbers = range(start, min(start + batch_size, samples.stop))
            if entries := [entry for i in numbers if (entry := _entry(source, i))]:
                _write(tar, entries, encode, dtype)
            if progress:
                progress(numbers.stop, len(source))
        if not tar.bytes_written:
            where = f"cache shard {place.name}"
            raise UserError(where, "no sample of it decodes", "at least one", "mend the source shard")
        tar.close()
    except BaseException:
        tar.abandon()
        raise


def _entry(source: Source, i: int) -> Entry | None:
    try:
        members = read_members(source.index, i)
        sample = decode(source.keys[i], members, source.look)
    except BadSample as why:
        source.note({i: why})
        return None
    carried = {suffix: data for suffix, data in members.items() if suffix in ("txt", "json")}
    return sample.key, to_unit(sample.frames.copy()), carried


def _write(tar: TarWriter, entries: list[Entry], encode: Encode, dtype: torch.dtype) -> None:
    with torch.no_grad():
        outputs = encode(torch.stack([frames for _, frames, _ in entries]))
    for row, (key, _, carried) in enumerate(entries):
        tensors = {name: _stored(t[row], dtype) for name, t in outputs.items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                fix = f"mend the encoder or the sample, or store more range than {dtype}"
                raise UserError(
                    f"encoding {name!r} of sample {key!r}", "not finite", "numbers that training can use", fix
                )
        members = {**carried, "safetensors": safetensors.torch.save(tensors)}
        for suffix in sorted(members):
            tar.add(f"{key}.{suffix}", members[suffix])


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
