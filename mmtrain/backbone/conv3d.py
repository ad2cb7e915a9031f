"""A small 3D CNN of our own: convolutions over space and time, one side of a `Pair`. No library has a class for it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmtrain.adapter.full import load_weights
from mmtrain.backbone.weights import freeze, verify
from mmtrain.errors import UserError

GROUPS = 8


class Conv3D(nn.Module):
    """Stages that halve space, and from the second on time; then a mean over time and one linear layer over space.

    Where things are is kept until that layer: a mean over space would hide which way they went.

    Args:
        path: folder that `save` wrote.
    """

    def __init__(self, *, path: str) -> None:
        verify(path)
        facts = _facts(Path(path))
        self._hold(_network(**facts), facts, path)
        load_weights(dict(self.model.named_parameters()), load_file(Path(path) / "model.safetensors"), path)

    def _hold(self, model: nn.Module, facts: dict[str, Any], path: str) -> None:
        super().__init__()
        self.model: Any = freeze(model)
        self.facts, self.path = facts, path
        self.num_frames, self.side = facts["num_frames"], facts["side"]

    @property
    def width(self) -> int:
        return int(self.facts["width"])

    def forward(self, frames: Tensor) -> Tensor:
        """Frames ``[b t c h w]`` in [-1, 1] → the clip's feature ``[b 1 d]``.

        Raises:
            UserError: another number of frames.
        """
        b, t = frames.shape[:2]
        if t != self.num_frames:
            came = "an image" if t == 1 else f"clips of {t} frames"
            fix = f"set dataset.num_frames={self.num_frames}"
            raise UserError(f"backbone {self.path}", came, f"clips of {self.num_frames} frames", fix)
        if frames.shape[-1] != self.side:
            resized = nn.functional.interpolate(frames.flatten(0, 1), self.side, mode="bilinear", antialias=True)
            frames = resized.unflatten(0, (b, t))
        return self.model(frames.transpose(1, 2))[:, None]

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        folder.mkdir(parents=True)
        weights = {name: w.detach().to(dtype).contiguous() for name, w in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.facts, indent=1) + "\n")


def _network(channels: list[int], num_frames: int, side: int, width: int) -> nn.Module:
    stages: list[nn.Module] = []
    into = 3
    for i, out in enumerate(channels):
        stride = (1 if i == 0 or num_frames >> i == 0 else 2, 2, 2)
        convolution = nn.Conv3d(into, out, 3, stride=stride, padding=1, bias=False)
        stages += [convolution, nn.GroupNorm(GROUPS, out), nn.GELU()]
        into = out
    left = -(-side // 2 ** len(channels))
    over_time = nn.AdaptiveAvgPool3d((1, left, left))
    return nn.Sequential(*stages, over_time, nn.Flatten(), nn.Linear(into * left * left, width))


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(str(file), f"unreadable ({error})", "what mmtrain wrote", "check the path") from error


def fresh(*, channels: list[int], num_frames: int, side: int, width: int) -> Conv3D:
    """An untrained one.

    Args:
        channels: of each stage, multiples of 8.
        num_frames: of a clip.
        side: in pixels of the square frames that it sees.
        width: of its features.
    """
    if not channels or any(c < GROUPS or c % GROUPS for c in channels):
        raise UserError("backbone.channels", str(channels), f"multiples of {GROUPS}", "correct them")
    facts: dict[str, Any] = {"channels": channels, "num_frames": num_frames, "side": side, "width": width}
    tower = Conv3D.__new__(Conv3D)
    tower._hold(_network(**facts), facts, "fresh")
    return tower
