"""How much each place of a sample's latents counts in its loss.

Weights broadcast against the latents and have a mean of one over a sample, so that none counts more than another.
"""

from torch import Tensor
from torch.nn.functional import interpolate

from mmtrain.errors import UserError


def moving(latents: Tensor, axis: int | None, amount: float) -> Tensor:
    """1 + amount · |z_t − z_0|, the distance meant over channels: more where a clip's clean
    latents are no longer those of its first frame.

    Args:
        latents: clean, ``[b t c h w]`` or ``[b c t h w]``.
        axis: of their frames, 1 or 2.
        amount: 0 weighs all places the same.

    Returns:
        Of the latents' shape, but one channel; not yet of mean one.

    Raises:
        UserError: latents without frames.
    """
    if axis is None:
        wanted = "a backbone of clips, or 0"
        raise UserError("objective.motion_weight", f"{amount:g} for latents of pictures", wanted, "set it to 0")
    return 1 + amount * (latents - latents.narrow(axis, 0, 1)).abs().mean(3 - axis, keepdim=True)


def unmasked(latents: Tensor, masks: Tensor, least: float) -> Tensor:
    """Masks ``[b h w]`` of the frames, brought to the latents' grid by area; ``least`` where they are black.

    Returns:
        Of the latents' shape, but one channel, and one frame for clips; not yet of mean one.

    Raises:
        UserError: latents without places.
    """
    if latents.ndim < 4:
        wanted = "a backbone of pictures or clips, or 1"
        raise UserError("objective.unmasked_weight", f"{least:g} for latents without places", wanted, "set it to 1")
    grid = interpolate(masks[:, None], size=latents.shape[-2:], mode="area")
    weights = least + (1 - least) * grid
    return weights.unsqueeze(2) if latents.ndim == 5 else weights


def mean_of_one(weights: Tensor) -> Tensor:
    """Weights ``[b …]`` over their mean in each sample."""
    return weights / weights.flatten(1).mean(1).view(-1, *[1] * (weights.ndim - 1))
