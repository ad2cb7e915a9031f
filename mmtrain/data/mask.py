"""Masks: which places of a sample's frames its loss is about.

`key.mask.png` lies beside the picture or clip: white where a place counts, black where it does not, grey between. One
mask holds for all frames of a clip.
"""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from mmtrain.data.decode import BadSample, Look, bound, reasons, to_rgb
from mmtrain.data.facts import measure

MASK = "mask.png"


def mask_of(members: Mapping[str, bytes], look: Look) -> np.ndarray | None:
    """The mask of a sample, uint8 ``[h w]``, cut as its frames are; None where it has none.

    Raises:
        BadSample: it does not decode, is of other proportions than the frames, or leaves nothing of what is kept.
    """
    if MASK not in members:
        return None
    with reasons(MASK):
        image: Image.Image = Image.open(io.BytesIO(members[MASK]), formats=("PNG",))
        bound(*image.size)
        if image.has_transparency_data:
            layers = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), layers)
        grey = to_rgb(image).convert("L")
    width, height, *_ = measure(members)[0]
    if abs(grey.height * width - grey.width * height) > max(width, height):  # by more than a pixel
        came = f"the .{MASK} is {grey.width} x {grey.height}, the frames {width:g} x {height:g}"
        raise BadSample(came, "a mask of other proportions")
    kept = look.place(grey, Image.Resampling.BOX)
    if not kept.any():
        raise BadSample(f"the .{MASK} is black wherever the frames are kept", "an empty mask")
    return kept


def png(mask: np.ndarray) -> bytes:
    """uint8 ``[h w]`` → PNG."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
