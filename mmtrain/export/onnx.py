"""The network of a Stable Diffusion in ONNX, adapters folded in, and the proof that ONNX Runtime runs what was trained.

What the network is given is not written down: one step of sampling shows it, and the axes along which two steps of
unlike sizes differ are those that the exported network leaves open.
"""

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.weights import write_manifest
from mmtrain.errors import UserError
from mmtrain.export.prove import SEED, Proof, refused
from mmtrain.sample.generate import evaluating, folded, part_of
from mmtrain.sample.onnx import FILE, PACKAGES, halvings, require, tensors

SCRIPT = Path(__file__).with_name("runtime.py")
LIMIT = 1e-4
"""How far the network's outputs may be apart, of their own deviation."""

_TRACED, _OTHER = (2, 2, 4, 3), (3, 4, 2, 1)
"""Batch, height and width (in units of what the network can halve), tokens of two steps. None of the first is
1, which would be fixed for ever."""


def check(dtype: torch.dtype) -> None:
    """Raises UserError for what hinders an export before anything is loaded: a missing package, half precision."""
    require("--format onnx", PACKAGES)
    if dtype != torch.float32:
        raise UserError("--format onnx --dtype", "fp16", "fp32, in which it is proved", "leave --dtype out")


def write_onnx(backbone: Any, folder: Path, facts: Mapping[str, str]) -> Path:
    """Write ``<part>/model.onnx``, with open axes, and its checksum beside it.

    Args:
        backbone: adapters attached.
        folder: where to.
        facts: where it comes from, for the file's metadata.

    Returns:
        The file.

    Raises:
        UserError: it is no Stable Diffusion, or torch cannot export its network.
    """
    if not isinstance(backbone, StableDiffusion):
        raise UserError("--format onnx", f"a {type(backbone).__name__}", "a Stable Diffusion", "use --format merged")
    given, other = asked(backbone, *_TRACED), asked(backbone, *_OTHER)
    place = folder / part_of(backbone)
    place.mkdir(exist_ok=True)
    open_axes = tuple(_open(given[name], other[name]) for name in given)
    network = _Plain(backbone, list(given))
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                network,
                tuple(given.values()),
                dynamo=True,
                dynamic_shapes={"values": open_axes},
                input_names=list(given),
                output_names=["output"],
                verbose=False,
            )
    except Exception as error:  # whatever the exporter finds no word for
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise refused(folder, f"torch.onnx does not export it ({said[0]})") from error
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(place / FILE)
    write_manifest(place)
    return place / FILE


def prove_onnx(backbone: Any, file: Path) -> Proof:
    """Run the file by ONNX Runtime in a clean process, on batches of two sizes, and compare with the trained network.

    Args:
        backbone: the trained model, adapters attached and not folded.
        file: what `write_onnx` wrote.

    Returns:
        How far apart the outputs are, of their own deviation.

    Raises:
        UserError: it does not run, or gives something else.
    """
    live = _Plain(backbone, [], folding=False)
    apart = []
    for sizes in (_TRACED, _OTHER):
        given = asked(backbone, *sizes)
        live.names = list(given)
        with torch.no_grad(), evaluating(backbone):
            wanted = live(*given.values()).numpy()
        got = _by_runtime(given, file)
        if got.shape != wanted.shape:
            raise refused(file.parent.parent, f"its network gives {got.shape} where {wanted.shape} was trained")
        apart.append(np.abs(got - wanted).ravel() / wanted.std())
    every = np.concatenate(apart)
    proof = Proof(mean=float(every.mean()), most=float(every.max()))
    if not proof.most <= LIMIT:  # so that NaN is refused too
        came = f"its network's output is {proof.most:.3g} deviations away from the trained one's"
        raise refused(file.parent.parent, came)
    return proof


def asked(backbone: Any, batch: int, height: int, width: int, tokens: int) -> dict[str, Tensor]:
    """What a step of sampling gives the network, by argument, drawn from a fixed seed.

    Args:
        backbone: adapters attached.
        batch: of the step.
        height, width: in units of what the network can halve.
        tokens: of text, or what stands in its place.
    """
    unit = backbone.multiple * halvings(backbone.network)
    generator = torch.Generator().manual_seed(SEED)
    noisy, level, condition = backbone.example(batch, 1, height * unit, width * unit)
    taken: dict[str, Tensor] = {}

    def keep(network: nn.Module, args: Any, kwargs: Any) -> None:
        taken.update(tensors(network, args, kwargs))

    handle = backbone.network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), evaluating(backbone):
            draw = {name: _drawn(part, generator) for name, part in condition.items()}
            backbone.predict(_drawn(noisy, generator), _drawn(level, generator), draw)
    finally:
        handle.remove()
    told = taken["encoder_hidden_states"]
    taken["encoder_hidden_states"] = torch.randn(len(told), tokens, told.shape[2], generator=generator)
    return taken


def _drawn(part: Tensor, generator: torch.Generator) -> Tensor:
    if part.is_floating_point():
        return torch.randn(part.shape, generator=generator)
    return torch.randint(1, 1000, part.shape, generator=generator)


def _open(one: Tensor, other: Tensor) -> dict[int, str]:
    """Axes of an input that may have any length, each with a name."""
    known = {0: "batch", 2: "height", 3: "width"} if one.ndim == 4 else {0: "batch", 1: "tokens"}
    return {axis: known[axis] for axis in range(one.ndim) if one.shape[axis] != other.shape[axis]}


class _Plain(nn.Module):
    """A network whose call takes tensors alone, in the order of their names, and gives one."""

    def __init__(self, backbone: Any, names: list[str], folding: bool = True) -> None:
        super().__init__()
        self.network = folded(backbone.network) if folding else backbone.network
        self.names = names

    def forward(self, *values: Tensor) -> Tensor:
        kwargs = dict(zip(self.names, values, strict=True))
        output: Tensor = self.network(**kwargs, return_dict=False)[0]
        return output


@contextmanager
def _silent() -> Iterator[None]:
    """torch tells which parts of its exporter are not installed, and warns of its own internals."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _by_runtime(given: Mapping[str, Tensor], file: Path) -> np.ndarray:
    with tempfile.TemporaryDirectory() as room:
        place = Path(room)
        arrays: dict[str, Any] = {name: value.numpy() for name, value in given.items()}
        np.savez(place / "input.npz", **arrays)
        words = [sys.executable, "-P", str(SCRIPT), str(file.resolve()), room, str(torch.get_num_threads())]
        done = subprocess.run(words, cwd=room, env=dict(os.environ), capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            came = f"ONNX Runtime does not run it ({said[-1] if said else f'status {done.returncode}'})"
            raise refused(file.parent.parent, came)
        output: np.ndarray = np.load(place / "output.npy", allow_pickle=False)
        return output
