"""Two-sample statistics by kernels: are two sets of samples of one distribution? No classifier is trained."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.types import Array, Key


class TwoSample(NamedTuple):
    """A squared distance between distributions: unbiased, so that it can be negative where they are equal."""

    value: Array  # []
    stderr: Array  # [], of value
    p_value: Array  # [], of equality, by permutation; NaN without permutations


def squared_distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances of [m, D] and [n, D]: [m, n], 0 where rounding cannot tell them from it."""
    centre = jnp.mean(y, axis=0, keepdims=True)  # what all share costs digits
    x, y = x - centre, y - centre
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]
    distances = squares - 2 * jnp.matmul(x, y.T, precision="highest")
    return jnp.where(distances > 16 * jnp.finfo(x.dtype).eps * squares, distances, 0)


@partial(jax.jit, static_argnames="permutations")
def mmd(key: Key, x: Array, y: Array, bandwidth: Array | float | None = None, permutations: int = 200) -> TwoSample:
    """Unbiased squared maximum mean discrepancy under exp(-|a - b|^2 / (2 bandwidth^2)).

    Gretton et al. 2012, JMLR 13:723, lemma 6. The kernel is characteristic: only equal distributions have 0.

    Args:
        key: of the permutations.
        x: [m, *event], at least two.
        y: [n, *event], at least two. Memory grows as (m + n)^2.
        bandwidth: None for the median distance between different points of both sets taken together.
        permutations: of the labels, for the p-value, whose least value is 1 / (1 + permutations).
    """
    squares = _pooled_squares(x, y)
    if bandwidth is None:
        median = jnp.nanmedian(jnp.where(squares > 0, squares, jnp.nan))
        bandwidth = jnp.sqrt(jnp.where(median > 0, median, 1))  # there is no median where all points are one
    return _compare(key, jnp.exp(-squares / (2 * bandwidth**2)), len(x), permutations)


@partial(jax.jit, static_argnames="permutations")
def energy_distance(key: Key, x: Array, y: Array, permutations: int = 200) -> TwoSample:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased; nothing is to be chosen.

    Szekely and Rizzo 2013, J. Stat. Plan. Inference 143:1249. It is the discrepancy of the kernel -|a - b|
    (Sejdinovic et al. 2013, arXiv 1207.6076). Arguments as in `mmd`.
    """
    return _compare(key, -jnp.sqrt(_pooled_squares(x, y)), len(x), permutations)


def _pooled_squares(x: Array, y: Array) -> Array:
    """Squared distances between all points of both sets: [m + n, m + n]."""
    pooled = jnp.concatenate([x.reshape(len(x), -1), y.reshape(len(y), -1)])
    return squared_distances(pooled, pooled)


def _compare(key: Key, kernel: Array, m: int, permutations: int) -> TwoSample:
    """The statistic of the first m points against the other n, with the kernel [m + n, m + n] of all pairs."""
    n = len(kernel) - m
    kernel = kernel * (1 - jnp.eye(m + n, dtype=kernel.dtype))  # a point and itself are no pair

    def contrast(in_x: Array) -> Array:
        """Each point's mean kernel with the others of its set less that with the other set: [m + n]."""
        to_x = jnp.matmul(kernel, in_x, precision="highest")
        to_y = jnp.matmul(kernel, 1 - in_x, precision="highest")
        return jnp.where(in_x > 0, to_x / (m - 1) - to_y / n, to_y / (n - 1) - to_x / m)

    def statistic(in_x: Array) -> Array:
        return jnp.sum(contrast(in_x) * jnp.where(in_x > 0, 1 / m, 1 / n))

    in_x = (jnp.arange(m + n) < m).astype(kernel.dtype)
    value, influence = statistic(in_x), 2 * contrast(in_x)  # of each point, to first order
    stderr = jnp.sqrt(jnp.var(influence[:m], ddof=1) / m + jnp.var(influence[m:], ddof=1) / n)
    if permutations == 0:
        return TwoSample(value, stderr, jnp.full_like(value, jnp.nan))
    keys = jax.random.split(key, permutations)
    null = jax.vmap(lambda key: statistic(jax.random.permutation(key, in_x)))(keys)
    return TwoSample(value, stderr, (1 + jnp.sum(null >= value)) / (1 + permutations))
