"""Gradient energy: how much images change from pixel to pixel, against how much data do.

    E(x) = mean of (x_i - x_j)^2 over all pairs of neighbouring pixels i, j, in rows and in columns, and over channels

The ratio of its mean over samples to that over data is below 1 where samples are smoother than data: blurred, or
paler. It is above 1 where they are rougher: pixel noise counts as much as edges do. At 1 they may differ all the same.
"""

from __future__ import annotations

import numpy as np

from dgm_jax.evaluation.nll import Metric


def gradient_energy(x: np.ndarray) -> np.ndarray:
    """E of each image, [n], in squared units of x.

    Args:
        x: [n, H, W, C].

    Raises:
        ValueError: no images, or of a single pixel.
    """
    if x.ndim != 4 or x.shape[1] * x.shape[2] < 2:
        raise ValueError(f"neighbouring pixels are those of images [n, H, W, C] of more than one; not of {x.shape}")
    x = np.asarray(x, np.float64)
    squares = [np.diff(x, axis=axis).reshape(len(x), -1) ** 2 for axis in (1, 2)]
    return np.concatenate(squares, axis=1).mean(axis=1)


def relative_energy(samples: np.ndarray, data: np.ndarray) -> Metric:
    """The mean gradient energy of samples over that of data.

    Args:
        samples: [m, H, W, C], m > 1.
        data: [n, H, W, C] in the same units, n > 1.

    Returns:
        An estimate, with its standard error by the delta method and "n", the number of samples.

    Raises:
        ValueError: as `gradient_energy`, or data without any gradient.
    """
    of_samples, of_data = gradient_energy(samples), gradient_energy(data)
    whole = of_data.mean()
    if whole == 0:
        raise ValueError(f"each of the {len(data)} images of the data has one value: they have no gradient")
    value = of_samples.mean() / whole
    # of a ratio of independent means: its deviation is that of E(sample) - value E(data), over the mean of the latter
    variance = of_samples.var(ddof=1) / len(of_samples) + value**2 * of_data.var(ddof=1) / len(of_data)
    stderr = float(np.sqrt(variance) / whole)
    return {"value": float(value), "stderr": stderr, "n": len(of_samples), "kind": "estimate", "unit": "1"}
