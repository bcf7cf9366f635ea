"""Parzen-window log-likelihood: the density of Gaussians around a model's samples, at the test data.

The measure of Goodfellow et al. 2014 (arXiv 1406.2661) and of f-GAN (arXiv 1606.00709), kept to compare with
them. It ranks models wrongly: in high dimensions no feasible number of samples comes near the true density, and
k-means centres score higher than the training data (Theis et al. 2016, arXiv 1511.01844, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.evaluation.nll import Metric, metric
from dgm_jax.types import Array

SIGMAS = tuple(np.logspace(-1, 0, 10))  # for pixels in [0, 1]


@partial(jax.jit, static_argnames="chunk")
def log_density(centres: Array, x: Array, sigmas: Array, chunk: int = 64) -> Array:
    """Log-density of an equal mixture of spherical Gaussians.

    Args:
        centres: [m, *event].
        x: [n, *event].
        sigmas: [s], standard deviations to try.
        chunk: points at once: memory grows with it.

    Returns:
        [s, n] in nats.
    """
    centres, x = centres.reshape(len(centres), -1), x.reshape(len(x), -1)
    middle = jnp.mean(centres, axis=0, keepdims=True)  # what all share costs digits
    centres, x = centres - middle, x - middle
    norms = jnp.sum(centres**2, axis=1)

    def one(x: Array) -> Array:
        squares = jnp.maximum(norms + jnp.sum(x**2) - 2 * jnp.matmul(centres, x, precision="highest"), 0)
        return jax.lax.map(lambda sigma: jax.nn.logsumexp(-squares / (2 * sigma**2)), sigmas)

    total = jax.lax.map(one, x, batch_size=chunk).T
    return total - jnp.log(len(centres)) - x.shape[1] * (0.5 * jnp.log(2 * jnp.pi) + jnp.log(sigmas))[:, None]


def parzen(samples: np.ndarray, valid: np.ndarray, test: np.ndarray, sigmas: Sequence[float] = SIGMAS) -> Metric:
    """Score samples at the test data, with the sigma that is best at the validation data.

    Args:
        samples: [m, *event] of the model; the papers take 10,000.
        valid: [v, *event].
        test: [n, *event].
        sigmas: to choose from.

    Returns:
        The mean log-likelihood (higher is better) and its standard error over test examples, with "sigma".
    """
    samples, valid, test = (np.asarray(x, np.float32) for x in (samples, valid, test))
    tried = jnp.asarray(sigmas, jnp.float32)
    best = jnp.argmax(jnp.mean(log_density(samples, valid, tried), axis=1))
    values = np.asarray(log_density(samples, test, tried[best][None])[0], np.float64)
    return metric(values, "estimate", "nats") | {"sigma": float(tried[best])}
