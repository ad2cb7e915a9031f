"""A network that ONNX Runtime runs, in the place where a pipeline calls the one of torch.

`mmtrain export --format onnx` writes ``<part>/model.onnx``; everything around the network (text, codec, steps) stays as
it is. Needs onnxruntime (``pip install 'mmtrain[onnx]'``).
"""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtrain.backbone.weights import MANIFEST, verify
from mmtrain.errors import UserError
from mmtrain.sample.generate import folded
from mmtrain.sample.strength import replace

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_TYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}


def found(where: str) -> Path | None:
    """The network of a folder that `mmtrain export --format onnx` wrote; None where there is none."""
    files = sorted(Path(where).glob(f"*/{FILE}"))  # others ship such files too, without our checksums beside them
    return next((file for file in files if file.with_name(MANIFEST).is_file()), None)


def require(where: str, packages: tuple[str, ...] = ("onnxruntime",)) -> None:
    """Raises UserError where a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(where, f"no {' and no '.join(missing)} here", "the extra onnx", "pip install 'mmtrain[onnx]'")


def use(backbone: Any, file: Path) -> None:
    """Have ONNX Runtime run the network that adapters are attached to; torch's weights of it are given back.

    Args:
        backbone: whose network was exported.
        file: what `found` gave.

    Raises:
        UserError: onnxruntime is not installed, or the file is not what was exported.
    """
    require(str(file))
    verify(str(file.parent))
    network = folded(backbone.network)
    replace(backbone, network)
    network.forward = _Running(network, file)
    for weight in network.parameters():
        weight.data = weight.data.new_empty(0)


def tensors(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call of a network, by the argument's name."""
    given = inspect.signature(type(network).forward).bind(network, *args, **kwargs).arguments
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def halvings(network: Any) -> int:
    """What the height and width of a network's latents are divisible by."""
    return 2 ** (len(network.config.block_out_channels) - 1)


class _Running:
    """Stands for the ``forward`` of a diffusers network."""

    def __init__(self, network: nn.Module, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.network, self.multiple = network, halvings(network)
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}

    def __call__(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        given = tensors(self.network, args, kwargs)
        latents = next(iter(given.values()))
        for side in latents.shape[-2:]:
            if side % self.multiple:
                wanted = f"a multiple of {self.multiple}, which the exported network halves"
                raise UserError("--height and --width", f"latents of {side}", wanted, "choose another size")
        assert given.keys() == self.inputs.keys(), f"{sorted(given)} given, {sorted(self.inputs)} exported"
        told = {name: self._array(name, value, len(latents)) for name, value in given.items()}
        output = torch.from_numpy(self.session.run(None, told)[0])
        return SimpleNamespace(sample=output) if return_dict else (output,)

    def _array(self, name: str, value: Tensor, batch: int) -> np.ndarray:
        """A level that holds for the whole batch is spread over it."""
        spread = value.expand(batch) if value.ndim == 0 else value
        return spread.to("cpu", _TYPES[self.inputs[name].type]).contiguous().numpy()
