"""Frechet distance between Gaussians fitted to features. In features of our own choice it is not the FID.

Dowson and Landau 1982, J. Multivariate Analysis 12:450; for generated images, Heusel et al. 2017, arXiv
1706.08500, in the features of one Inception network, on 50,000 samples. It is biased upwards by about 1 / n,
and differently for each model: compare at equal numbers of samples only.
"""

from __future__ import annotations

import numpy as np

from dgm_jax.evaluation.jackknife import jackknife


def gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), of means [d] and covariances [d, d].

    The trace of the root is taken of A^(1/2) B A^(1/2), which is symmetric and has the same eigenvalues as A B: no
    complex numbers, and singular covariances do no harm.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    difference = mean_a - mean_b
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(difference @ difference + trace)


def frechet(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Frechet distance between features.

    Args:
        a: [m, d], at least 20.
        b: [n, d], at least 20.

    Returns:
        (distance in squared units of the features, its standard error).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return _fitted(a, b), float(jackknife(_fitted, a, b))


def _fitted(a: np.ndarray, b: np.ndarray) -> float:
    return gaussians(a.mean(0), np.atleast_2d(np.cov(a.T)), b.mean(0), np.atleast_2d(np.cov(b.T)))
