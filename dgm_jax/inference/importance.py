"""Importance sampling: self-normalised expectations, and importance-weighted bounds of log p(x).

`draw` and `log_joint` are capabilities of a Model, over a batch: draw(params, key, batch) -> (z, log_q [B]) and
log_joint(params, z, batch) -> [B]. Draw i of k has the key fold_in(key, i).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.inference.estimators import draws
from dgm_jax.types import Array, Batch, Key, Params, PyTree

Draw = Callable[[Params, Key, Batch], tuple[PyTree, Array]]
LogJoint = Callable[[Params, PyTree, Batch], Array]


class Weighted(NamedTuple):
    """A self-normalised estimate."""

    mean: Array
    stderr: Array
    ess: Array  # effective sample size: how many unweighted draws the weighted ones are worth


def effective_sample_size(log_weights: Array) -> Array:
    """(sum w)^2 / sum w^2 over the leading axis: [n, ...] -> [...] in [1, n]; NaN where every weight is 0."""
    return 1 / jnp.sum(jax.nn.softmax(log_weights, axis=0) ** 2, axis=0)


def self_normalized(
    key: Key,
    sample: Callable[[Key], PyTree],
    log_weight: Callable[[PyTree], Array],
    f: Callable[[PyTree], Array],
    n: int,
    chunk: int | None = None,
) -> Weighted:
    """Estimate E_p[f(x)] from draws of q, for p known up to a constant.

    Args:
        key: of all draws.
        sample: key -> x, a draw of q.
        log_weight: x -> [], log p(x) - log q(x) up to a constant.
        f: x -> [].
        n: draws.
        chunk: draws at once; None for all.

    Returns:
        Weighted scalars. The bias is of order 1/n; stderr is by the delta method (Owen 2013, Monte Carlo
        theory, methods and examples, eq. 9.9).
    """

    def one(key: Key) -> tuple[Array, Array]:
        x = sample(key)
        return log_weight(x), f(x)

    log_weights, values = draws(key, one, n, chunk)
    weights = jax.nn.softmax(log_weights)
    mean = jnp.sum(weights * values)
    stderr = jnp.sqrt(jnp.sum((weights * (values - mean)) ** 2))
    return Weighted(mean, stderr, effective_sample_size(log_weights))


def log_weights(draw: Draw, log_joint: LogJoint, params: Params, key: Key, batch: Batch, k: int) -> Array:
    """log p(x, z_i) - log q(z_i | x) of k draws: [k, B]. Gradients flow through draw and log_joint both."""
    return jax.vmap(lambda i: _drawn(draw, log_joint, params, key, batch, i)[1])(jnp.arange(k))


def importance_bound(
    draw: Draw, log_joint: LogJoint, params: Params, key: Key, batch: Batch, k: int, chunk: int = 64
) -> Array:
    """The importance-weighted bound log 1/k sum_i p(x, z_i) / q(z_i | x): [B], in nats.

    In expectation it is at most log p(x) and rises with k (Burda et al. 2016, arXiv 1509.00519, theorem 1).

    Args:
        draw, log_joint: of the Model.
        params, key, batch: as they take them.
        k: draws.
        chunk: draws at once: memory grows with it and not with k. The result is that of any other chunk.
    """
    return _weighted(draw, log_joint, lambda z: (), params, key, batch, k, chunk)[0] - jnp.log(k)


def posterior_mean(
    draw: Draw,
    log_joint: LogJoint,
    f: Callable[[PyTree], Array],
    params: Params,
    key: Key,
    batch: Batch,
    k: int,
    chunk: int = 64,
) -> Array:
    """E[f(z) | x], estimated as sum_i w_i f(z_i) / sum_i w_i with w_i = p(x, z_i) / q(z_i | x): [B, ...].

    The bias is of order 1/k (Owen 2013, Monte Carlo theory, methods and examples, section 9.2).

    Args:
        draw, log_joint: of the Model.
        f: latents of a batch -> [B, ...].
        params, key, batch, k, chunk: as in `importance_bound`.
    """
    return _weighted(draw, log_joint, f, params, key, batch, k, chunk)[1]


def _weighted(
    draw: Draw,
    log_joint: LogJoint,
    f: Callable[[PyTree], PyTree],
    params: Params,
    key: Key,
    batch: Batch,
    k: int,
    chunk: int,
) -> tuple[Array, PyTree]:
    """log sum_i w_i [B], and the mean of f(z_i) under the weights."""
    chunks = -(-k // chunk)
    size = -(-k // chunks)  # even chunks: fewer than `chunks` draws are wasted

    def one(i: int | Array) -> tuple[Array, PyTree]:
        z, log_weight = _drawn(draw, log_joint, params, key, batch, i)
        return log_weight, f(z)

    def add(so_far: tuple[Array, PyTree], first: Array) -> tuple[tuple[Array, PyTree], None]:
        total, means = so_far
        index = first + jnp.arange(size)
        terms, values = jax.vmap(one)(index)
        terms = jnp.where((index < k)[:, None], terms, -jnp.inf)
        both = jnp.concatenate([total[None], terms])
        nothing = jnp.all(both == -jnp.inf, axis=0)  # no draw so far has any weight: a sum without a gradient
        some = jax.nn.logsumexp(jnp.where(nothing[None], 0, both), axis=0)
        before, shares = jnp.exp(total - some), jnp.exp(terms - some[None])  # [B], [size, B]

        def joined(mean: Array, value: Array) -> Array:
            old, own = (jnp.expand_dims(w, range(w.ndim, w.ndim + mean.ndim - 1)) for w in (before, shares))
            return old * mean + (own * value).sum(0)

        return (jnp.where(nothing, -jnp.inf, some), jax.tree.map(joined, means, values)), None

    weight, value = jax.eval_shape(lambda: one(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), value)
    start = jnp.full(weight.shape, -jnp.inf, weight.dtype), zeros
    return jax.lax.scan(add, start, size * jnp.arange(chunks))[0]


def _drawn(
    draw: Draw, log_joint: LogJoint, params: Params, key: Key, batch: Batch, i: int | Array
) -> tuple[PyTree, Array]:
    """Draw i, and its log-weight [B]."""
    z, log_q = draw(params, jax.random.fold_in(key, i), batch)
    return z, log_joint(params, z, batch) - log_q
