"""A network of clips that starts from a network of pictures, as Stable Video Diffusion did from Stable Diffusion 2.1
(Blattmann et al. 2023, section 4.1)."""

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import silu

from mmtrain.backbone.schedule import Discrete
from mmtrain.errors import UserError

_TEMPORAL = ("temporal_res_block", "temporal_transformer_blocks", "time_pos_embed", "time_mixer")
_LAST = (  # behind these layers is a residual connection: with zeros in them time changes nothing
    "temporal_res_block.conv2",
    "temporal_transformer_blocks.0.ff_in.net.2",
    "temporal_transformer_blocks.0.attn1.to_out.0",
    "temporal_transformer_blocks.0.attn2.to_out.0",
    "temporal_transformer_blocks.0.ff.net.2",
    "time_pos_embed.linear_2",
    "add_embedding.linear_2",
)
_OWN = ("add_embedding.", "time_embedding.", "conv_in.weight")
_SPREAD = 16  # of the level's first layer: of ¼ ln σ, a number near 0, most sinusoids are nearly constant
_RIDGE = 1e-2


def _attention(name: str) -> str | None:
    """Where the attention is that a weight belongs to: ``up_blocks.2.attentions.0.``."""
    place, found, rest = name.partition(".attentions.")
    return f"{place}{found}{rest.partition('.')[0]}." if found else None


def _heads(network: Any) -> dict[str, int]:
    """Of each attention, which no weight's shape tells."""
    return {name: part.heads for name, part in network.named_modules() if isinstance(part, Attention)}


@torch.no_grad()
def inflate(network: UNetSpatioTemporalConditionModel, image: UNet2DConditionModel, schedule: Discrete) -> None:
    """Give a fresh video network an image network's weights; each frame is then what that one makes of it alone.

    Layers in space, called alike in both, take the image network's weights; what that one has beside them (attention at
    a level where the video network has none, pooled captions) is left out. Attention where the image network has none
    and layers in time begin as no change, the first frame's latents and the micro-conditioning unread. The noise level,
    which one network knows by its step and the other by ¼ ln σ, is fitted by least squares.

    Args:
        network: on the meta device it is checked alone.
        image: of the same widths.
        schedule: the noise schedule of ``image``.

    Raises:
        UserError: an image network that lacks a layer of the video network, or does not predict v as that one does.
    """
    if schedule.kind != "v_prediction":
        raise UserError("backbone.sd", f"a model of {schedule.kind}", "v_prediction, as the video's is", "name another")
    known, weights = image.state_dict(), network.state_dict()
    shared = {
        name: known.get(name.replace(".spatial_res_block", ""))
        for name in weights
        if not name.startswith(_OWN) and not any(part in name for part in _TEMPORAL)
    }
    added = {name for name in shared if (place := _attention(name)) and not any(n.startswith(place) for n in known)}
    shared = {name: there for name, there in shared.items() if name not in added}
    strange = [name for name, there in shared.items() if there is None or there.numel() != weights[name].numel()]
    theirs = _heads(image)
    strange += [f"{n} of {h} heads" for n, h in _heads(network).items() if theirs.get(n, h) != h]
    if strange:
        came = f"{len(strange)} layers that its network has not, {strange[0]} first"
        raise UserError("backbone.sd", came, "the video network's levels, widths and heads", "correct backbone.unet")
    if image.device.type == "meta":
        return
    for name, weight in weights.items():
        there = shared.get(name)
        if there is not None:
            weight.copy_(there.view_as(weight))  # projections are 1 × 1 convolutions there and linear here
        elif any(last in name for last in _LAST) or (name in added and ".proj_out." in name):
            weight.zero_()
    weights["conv_in.weight"].zero_()[:, : known["conv_in.weight"].shape[1]] = known["conv_in.weight"]
    _fit_level(network, image, schedule)


def _fit_level(network: UNetSpatioTemporalConditionModel, image: UNet2DConditionModel, schedule: Discrete) -> None:
    """Solve the level's last layer so that ¼ ln σ is embedded as the image network embeds the step of that σ."""
    level, step = _levels(schedule)
    wanted = image.time_embedding(image.time_proj(step.float())).double()
    first, last = network.time_embedding.linear_1, network.time_embedding.linear_2
    for part in (first.weight, first.bias):
        part.mul_(_SPREAD)
    hidden = silu(first(network.time_proj(level.float()))).double()
    hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
    gram = hidden.T @ hidden / len(hidden) + _RIDGE * torch.eye(hidden.shape[1], dtype=hidden.dtype)
    solved = torch.linalg.solve(gram, hidden.T @ wanted / len(hidden)).float()
    last.weight.copy_(solved[:-1].T)
    last.bias.copy_(solved[-1])


def _levels(schedule: Discrete, count: int = 600) -> tuple[Tensor, Tensor]:
    """¼ ln σ and the image network's steps of the same levels, float64 ``[count]``; pure noise has no such σ."""
    kept = schedule.kept[schedule.kept > 0]
    log = (0.5 * ((1 - kept).log() - kept.log())).numpy()
    even = np.linspace(log[0], log[-1], count)
    return torch.from_numpy(even / 4), torch.from_numpy(np.interp(even, log, np.arange(len(log))))
