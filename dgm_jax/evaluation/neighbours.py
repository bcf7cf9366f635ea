"""Nearest neighbours: has a model memorised its training data, and do its samples cover the data?"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from dgm_jax.evaluation.two_sample import squared_distances
from dgm_jax.types import Array


@partial(jax.jit, static_argnames=("k", "chunk"))
def nearest(x: Array, reference: Array, k: int = 1, chunk: int = 64) -> tuple[Array, Array]:
    """Find the k nearest rows of `reference` for each of `x`, by Euclidean distance.

    Args:
        x: [n, *event].
        reference: [m, *event].
        k: neighbours, at most m.
        chunk: points at once: memory grows with it.

    Returns:
        (indices [n, k], distances [n, k]), nearest first. plots.comparison(x, reference[indices[:, 0]]) shows
        memorisation.
    """
    x, reference = x.reshape(len(x), -1), reference.reshape(len(reference), -1)
    middle = jnp.mean(reference, axis=0, keepdims=True)  # what all share costs digits
    x, reference = x - middle, reference - middle
    norms = jnp.sum(reference**2, axis=1)

    def one(x: Array) -> tuple[Array, Array]:
        # |x|^2 is the same for all: it changes no order
        _, index = jax.lax.top_k(2 * jnp.matmul(reference, x, precision="highest") - norms, k)
        return index, jnp.linalg.norm(reference[index] - x[None], axis=1)

    return jax.lax.map(one, x, batch_size=chunk)


def precision_recall(samples: Array, reference: Array, k: int = 3) -> tuple[Array, Array]:
    """Say of each sample whether it is like the data, and of each datum whether it is like the samples.

    A point is like a set if it lies no farther from one of its points than that point's k-th nearest neighbour in
    the set. The means are precision (quality) and recall (no modes missed): Kynkaanniemi et al. 2019, arXiv
    1904.06991, eq. 1 and 2, there in features of a classifier.

    Args:
        samples: [m, *event].
        reference: [n, *event]. Memory grows as the square of m and n.
        k: neighbours, less than m and n.

    Returns:
        (samples that are like the data, bool [m]; data that are like the samples, bool [n]).
    """
    return _inside(samples, reference, k), _inside(reference, samples, k)


@partial(jax.jit, static_argnames="k")
def _inside(x: Array, reference: Array, k: int) -> Array:
    x, reference = x.reshape(len(x), -1), reference.reshape(len(reference), -1)
    # the nearest of all is the point itself
    nearest_first, _ = jax.lax.top_k(-squared_distances(reference, reference), k + 1)
    return jnp.any(squared_distances(x, reference) <= -nearest_first[None, :, k], axis=1)
