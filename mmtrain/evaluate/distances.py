"""Distances between two sets of features ``[n d]``: Fréchet (Heusel et al. 2017), kernel (Bińkowski et al. 2018) and
CMMD (Jayasumana et al. 2024). Formulas only; float64."""

import numpy as np


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), of covariances with n - 1.

    The last trace is the nuclear norm of A Bᵀ for the centred rows A and B: no d × d root is taken, so that few samples
    of many features cost little and never give a complex number.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    first, second = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    spread = float((first**2).sum() + (second**2).sum())
    return max(0.0, mean + spread - 2 * float(np.linalg.svd(first @ second.T, compute_uv=False).sum()))


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD of k(x, y) = (x·y / d + 1)³; may fall below 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    d = a.shape[1]
    return _unbiased(*((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))))


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """1000 times the squared MMD (with its diagonal, as published) of k(x, y) = exp(-|x - y|² / (2 · 10²)), of
    embeddings of length 1."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        return float(np.exp(-squared / 200).mean())

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def _unbiased(same_a: np.ndarray, same_b: np.ndarray, across: np.ndarray) -> float:
    n, m = len(same_a), len(same_b)
    within = (same_a.sum() - np.trace(same_a)) / (n * (n - 1)) + (same_b.sum() - np.trace(same_b)) / (m * (m - 1))
    return float(within - 2 * across.mean())


def diversity(features: np.ndarray, owners: np.ndarray) -> float:
    """Mean of 1 - cosine between the features ``[n d]`` (of length 1) of different samples of one owner ``[n]``,
    averaged over owners with at least two; over all samples where no owner has two."""
    found = [_spread(features[owners == owner]) for owner in np.unique(owners) if (owners == owner).sum() > 1]
    return float(np.mean(found)) if found else _spread(features)


def _spread(features: np.ndarray) -> float:
    n = len(features)
    if n < 2:
        return 0.0
    alike = features @ features.T
    return 1 - float((alike.sum() - np.trace(alike)) / (n * (n - 1)))
