"""Linear probe: what a straight cut through the visual embeddings can tell, whatever the words are."""

import numpy as np

from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Numbers
from mmtrain.evaluate.embedded import Embedded, EmbeddingMetric


class LinearProbe(EmbeddingMetric):
    """Whether a ridge classifier tells the fact of an item that it was not fitted on: cross-validation over the items.

    Least squares on one-hot classes has a closed form, so that there is no number of steps to choose.

    Args:
        of: by the name under which the number is told, where the fact stands, such as ``objects.0.colour``.
        folds: parts; each is told by a probe fitted on the others.
        ridge: weight of the squared coefficients.
    """

    def __init__(self, *, of: dict[str, str], folds: int = 8, ridge: float = 0.1) -> None:
        if folds < 2 or ridge <= 0:
            raise UserError("metric linear_probe", f"folds {folds}, ridge {ridge}", "≥ 2, and above 0", "correct them")
        self.of, self.folds, self.ridge = of, folds, ridge

    def __call__(self, seen: Embedded) -> dict[str, list[Numbers]]:
        numbers: list[Numbers] = [{} for _ in seen.items]
        part = np.arange(len(seen.items)) % self.folds
        for name, path in self.of.items():
            labels = np.array([item.fact(path) for item in seen.items])
            for fold in range(min(self.folds, len(labels))):
                told = fitted(seen.visual[part != fold], labels[part != fold], seen.visual[part == fold], self.ridge)
                for i, label in zip(np.flatnonzero(part == fold), told, strict=True):
                    numbers[i][name] = bool(label == labels[i])
        return {"linear probe": numbers}


def fitted(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, ridge: float) -> np.ndarray:
    """Labels of embeddings ``asked [m d]`` by a ridge classifier of ``known [n d]``, centred on the known mean."""
    names, index = np.unique(labels, return_inverse=True)
    centre, targets = known.mean(0), np.eye(len(names))[index]
    x, y = known - centre, targets - targets.mean(0)
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    return names[((asked - centre) @ weights + targets.mean(0)).argmax(1)]
