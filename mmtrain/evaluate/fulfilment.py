"""The metric that the judge's reading gives: which facts of its prompt a clip fulfils, and whether objects stay.

A metric is a file like this one and a line in ``conf/metric/``: called with a clip's frames and its case, it returns
numbers by name. A bool is a share when averaged; a number that does not apply to the clip is None.
"""

import numpy as np

from mmtrain.data import world
from mmtrain.data.brand import Brand
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case, Numbers
from mmtrain.evaluate.judge import fulfilment, read

LEAST_FRAMES = 8  # below, the judge takes circling for jumping
_SIZES = {word for words in world._SIZE_WORDS.values() for word in words}
_ORDER = ("motion", "colour", "shape", "background", "size", "count", "binding")


class Fulfilment:
    """What `judge.fulfilment` finds true; and ``vanished or jumped``, whose lower share is the better.

    ``size`` counts only where the prompt tells every object's size: a caption of the world may leave it out. ``whole
    prompt`` is everything told at once. An object that is never there counts as vanished, where the truth tells of it.
    A case without truth has ``vanished or jumped`` alone. Of a picture, motion and ``vanished or jumped`` are not
    asked.

    Args:
        branded: whether clips may be in the style of the world's brand kit (`data/brand.py`). Plain clips are read as
            well then.
    """

    lower_is_better = ("vanished or jumped",)

    def __init__(self, *, branded: bool = False) -> None:
        self.brand = Brand() if branded else None

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``.

        Raises:
            UserError: fewer frames than the judge can tell circling from jumping by.
        """
        still = len(frames) == 1
        if len(frames) < LEAST_FRAMES and not still:
            came, fix = f"a clip of {len(frames)} frames", "make longer clips, or leave the metric out"
            raise UserError("metric fulfilment", came, f"at least {LEAST_FRAMES}, or a picture", fix)
        reading = read(frames, self.brand)
        lost = None if still else reading.vanished or reading.jumped
        if case.truth is None:
            return {"vanished or jumped": lost}
        right = fulfilment(reading, case.truth)
        if sum(word in _SIZES for word in case.prompt.split()) < len(case.truth["objects"]):
            del right["size"]
        if still:
            del right["motion"]
        told = {name: right.get(name) for name in _ORDER}
        whole = all(value for value in told.values() if value is not None)
        return {**told, "whole prompt": whole, "vanished or jumped": None if still else not right["permanence"]}
