"""Do the frames of a clip belong together? Asked of an alignment that was trained on whole and broken clips.

What breaks clips is `data/broken.py`. The score of a clip is by how much its embedding is nearer to the sentence of
broken clips than to that of whole ones; above 0 it is called broken.
"""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from mmtrain.backbone.aligned import Aligned
from mmtrain.data.broken import BROKEN, NO_FAULT, WHOLE
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case, Numbers
from mmtrain.evaluate.embedded import Embedded, EmbeddingMetric, Item, embedded
from mmtrain.evaluate.intervals import of_draws, paired
from mmtrain.evaluate.pairs import spread
from mmtrain.evaluate.table import PAIRS, Row

GROUP = "whole or broken"
_DRAWS = 2000


class Detection(EmbeddingMetric):
    """Of held-out clips whose faults are known: whether each is called what it is (``right``), by fault too; and the
    area under the ROC curve, the share of (broken, whole) pairs in which the broken clip has the higher score.

    Args:
        of: where a fault's name stands in a sample's facts; ``none`` is none.
    """

    distinct = False

    def __init__(self, *, of: str) -> None:
        self.of = of

    def __call__(self, seen: Embedded) -> dict[str, list[Numbers]]:
        numbers: list[Numbers] = []
        for fault, score in zip(self._faults(seen), scores(seen), strict=True):
            right = bool((score > 0) == (fault != NO_FAULT))
            numbers.append({"right": right, f"right, {'whole' if fault == NO_FAULT else fault}": right})
        return {GROUP: numbers}

    def rows(self, seen: Mapping[str, Embedded], *, seed: int) -> list[Row]:
        """The area under the curve, of all faults and of each.

        Raises:
            UserError: no clip is broken, or none is whole.
        """
        before, after = (scores(each) for each in seen.values())
        faults = np.array(self._faults(next(iter(seen.values()))))
        whole = faults == NO_FAULT
        if whole.all() or not whole.any():
            came = f"{len(faults)} clips, all of them {'whole' if whole.all() else 'broken'}"
            fix = "write some with `mmtrain shards world --broken 0.5`"
            raise UserError("metric detection", came, "whole ones and broken ones", fix)
        kinds = {"AUC": ~whole} | {f"AUC, {fault}": faults == fault for fault in sorted({*faults[~whole].tolist()})}
        return [
            _auc_row(name, won(before, broken, whole), won(after, broken, whole), seed)
            for name, broken in kinds.items()
        ]

    def _faults(self, seen: Embedded) -> list[str]:
        return [item.fact(self.of) for item in seen.items]


class Unbroken:
    """``judged whole``: whether a detector calls a clip whole.

    Args:
        detector: an alignment of clips with the sentences of `data/broken.py`. It sees as many frames as it was trained
            on, spread over the clip, so that a clip far longer than those looks to it as if all moved fast.
    """

    def __init__(self, *, detector: Aligned) -> None:
        self.detector = detector.eval()

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``.

        Raises:
            UserError: fewer frames than the detector sees.
        """
        least = self.detector.num_frames
        if least is not None and len(frames) < least:
            raise UserError(
                "metric unbroken", f"a clip of {len(frames)} frames", f"at least {least}", "make longer ones"
            )
        seen = embedded(self.detector, [Item(case.name, WHOLE, spread(frames, least))])
        return {"judged whole": bool(scores(seen)[0] <= 0)}


def scores(seen: Embedded) -> np.ndarray:
    """By how much each item is nearer to broken than to whole, ``[n]``."""
    broken, whole = seen.embed([BROKEN, WHOLE])
    found: np.ndarray = seen.visual @ (broken - whole)
    return found


def won(found: np.ndarray, broken: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of scores ``[n]`` and masks ``[n]``, whether each broken one has the higher score than each whole one, ½ where
    they are equal: ``[broken whole]``, whose mean is the area under the ROC curve."""
    over, under = found[broken][:, None], found[whole]
    return (over > under) + 0.5 * (over == under)


def _auc_row(name: str, before: np.ndarray, after: np.ndarray, seed: int) -> Row:
    """A row of two ``[broken whole]`` of the same clips: percentile bootstrap over broken and whole ones, the same
    draws for both; p of the sign-flip test on each clip's share of pairs won, whose mean is the area too."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0)])))
    times = [rng.multinomial(n, np.full(n, 1 / n), _DRAWS) / n for n in before.shape]  # how often each is drawn
    old, new = (((times[0] @ each) * times[1]).sum(1) for each in (before, after))
    shares = [np.concatenate([each.mean(1), each.mean(0)]) for each in (before, after)]
    return {
        "way": PAIRS,
        "group": GROUP,
        "number": name,
        "share": False,
        "better": "higher",
        "base": asdict(of_draws(before.mean(), old, n=len(before))),
        "adapted": asdict(of_draws(after.mean(), new, n=len(after))),
        "difference": asdict(of_draws(after.mean() - before.mean(), new - old, n=len(after))),
        "p_value": paired(shares[0], shares[1], seed=seed).p_value,
    }
