"""How much each place of a sample's latents counts in its loss.

Weights broadcast against the latents and have a mean of one over a sample, so that none counts more than another.
"""

from torch import Tensor

from mmtrain.errors import UserError


def moving(latents: Tensor, axis: int | None, amount: float) -> Tensor:
    """Weights in proportion to 1 + amount · |z_t − z_0|, the distance meant over channels: more where a clip's clean
    latents are no longer those of its first frame.

    Args:
        latents: clean, ``[b t c h w]`` or ``[b c t h w]``.
        axis: of their frames, 1 or 2.
        amount: 0 weighs all places the same.

    Returns:
        Of the latents' shape, but one channel.

    Raises:
        UserError: latents without frames.
    """
    if axis is None:
        wanted = "a backbone of clips, or 0"
        raise UserError("objective.motion_weight", f"{amount:g} for latents of pictures", wanted, "set it to 0")
    far = (latents - latents.narrow(axis, 0, 1)).abs().mean(3 - axis, keepdim=True)
    return mean_of_one(1 + amount * far)


def mean_of_one(weights: Tensor) -> Tensor:
    """Weights ``[b …]`` over their mean in each sample."""
    return weights / weights.flatten(1).mean(1).view(-1, *[1] * (weights.ndim - 1))
