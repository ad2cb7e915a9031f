"""The pictures that a style is compared with: some of a brand's own that training did not see, by ``--reference``."""

from collections.abc import Iterator

import numpy as np

from mmtrain.data.source import Source
from mmtrain.errors import UserError

_MOST = 256  # samples looked at


def reference(where: str | None, metric: str, *, num_frames: int | None = 1) -> Iterator[np.ndarray]:
    """Frames uint8 ``[t h w c]`` of each sample of some shards, the square middle.

    Args:
        where: shards, as `mmtrain shards pack` writes them; None where none were named.
        metric: that asks, for messages.
        num_frames: of each; None for all.

    Raises:
        UserError: none were named.
    """
    if where is None:
        fix = "name the held-out part of its folder, or others that `mmtrain shards pack` wrote, with --reference"
        raise UserError(f"metric {metric}", "no pictures to compare with", "shards of the brand's own", fix)
    source = Source(shards=where, num_frames=num_frames, require_captions=False)
    for i in range(min(_MOST, len(source))):
        frames = source.sample(i).frames
        side = min(frames.shape[1:3])
        top, left = ((size - side) // 2 for size in frames.shape[1:3])
        yield frames[:, top : top + side, left : left + side]
