"""Anomaly detection: how little an example looks like the data of a model, and how well that tells other data apart.

Raw likelihood fails where the other data are simple: a model of Fashion-MNIST finds the digits of MNIST more likely
than its own test set (Nalisnick et al. 2019, arXiv 1810.09136). The other scores here look at the parts of a
likelihood, at how typical it is, or at how simple the example is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

PARTS = 0.05  # share of the dimensions that `surprise` looks at


class Parts(NamedTuple):
    """What a model says of n examples, dimension by dimension; each is [n, *event]."""

    x: np.ndarray  # the examples
    cost: np.ndarray  # -log p(x_d | x_<d), nats
    predicted: np.ndarray  # E[x_d | x_<d]


# From the parts, and the mean negative log-likelihood of data like the model's: [n], higher where one is stranger.
Score = Callable[[Parts, float], np.ndarray]


def nll(parts: Parts, typical: float) -> np.ndarray:
    """The negative log-likelihood."""
    return parts.cost.reshape(len(parts.cost), -1).sum(1)


def typicality(parts: Parts, typical: float) -> np.ndarray:
    """How far the negative log-likelihood is from that of data (Nalisnick et al. 2019, arXiv 1906.02994, for one)."""
    return np.abs(nll(parts, typical) - typical)


def residual(parts: Parts, typical: float) -> np.ndarray:
    """The mean squared error of the predictions."""
    return ((parts.x - parts.predicted) ** 2).reshape(len(parts.x), -1).mean(1)


def surprise(parts: Parts, typical: float) -> np.ndarray:
    """The mean cost of the dearest dimensions: parts that do not follow from the others."""
    flat = parts.cost.reshape(len(parts.cost), -1)
    k = max(1, round(PARTS * flat.shape[1]))
    return np.partition(flat, -k, axis=1)[:, -k:].mean(1)


def complexity(parts: Parts, typical: float) -> np.ndarray:
    """The negative log-likelihood less the length of the packed example (Serra et al. 2020, arXiv 1909.11480).

    zlib packs the whole numbers x, a byte each; its length is in nats.
    """
    lengths = np.array([len(zlib.compress(one.astype(np.uint8).tobytes(), 9)) for one in parts.x])
    return nll(parts, typical) - 8 * np.log(2) * lengths


SCORES: dict[str, Score] = {
    "nll": nll,
    "typicality": typicality,
    "residual": residual,
    "surprise": surprise,
    "complexity": complexity,
}


def auroc(inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    """The probability that a score of other data is higher than one of the model's; ties count half.

    Args:
        inside: [n], scores of data like the model's.
        outside: [m], scores of other data.

    Returns:
        A metric; its standard error is that of Hanley & McNeil 1982, eq. 1.
    """
    n, m = len(inside), len(outside)
    area = float(stats.mannwhitneyu(outside, inside).statistic) / (n * m)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (one - area**2) + (n - 1) * (two - area**2)) / (n * m)
    return {"value": area, "stderr": float(np.sqrt(max(variance, 0.0))), "n": n + m, "kind": "estimate", "unit": "1"}
