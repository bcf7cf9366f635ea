"""Annealed importance sampling (Neal 2001; for RBMs Salakhutdinov & Murray 2008).

x_0 ~ f_{b_0} / Z_0 and x_t = transition at b_t of x_{t-1}, for 0 = b_0 < ... < b_T = 1. The weight

    w = prod_t f_{b_t}(x_{t-1}) / f_{b_{t-1}}(x_{t-1})

has mean Z_T / Z_0, so the estimate of Z_T is unbiased and that of log Z_T is low on average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.inference.importance import effective_sample_size
from dgm_jax.numerics import log_mean_exp, mean_and_stderr
from dgm_jax.types import Array, Key, PyTree


class LogPartition(NamedTuple):
    """An estimate of log Z, in nats."""

    log_z: Array  # []
    stderr: Array  # [], of log_z, by the delta method: stderr(w) / mean(w)
    log_weights: Array  # [chains], log w: log_z = log_z0 + log mean w
    ess: Array  # [], effective sample size of the weights, in [1, chains]


def log_partition(
    key: Key,
    betas: Array,
    init_sample: Callable[[Key], PyTree],
    log_unnormalized: Callable[[Array, PyTree], Array],
    transition: Callable[[Key, Array, PyTree], PyTree],
    log_z0: Array | float,
    chains: int,
    chunk: int | None = None,
) -> LogPartition:
    """Estimate the log partition function of log_unnormalized(betas[-1], .).

    The functions see one chain, without a batch dimension, and are vmapped over the chains here: `x @ w` in
    them becomes one matrix product. Chain c has the key fold_in(key, c).

    For an RBM with weights W, visible biases a, H hidden biases c, from the base-rate model with biases a_0:
    init_sample draws v from sigmoid(a_0); transition draws h from sigmoid(b (v W + c)), then v from
    sigmoid((1 - b) a_0 + b (W h + a)); log_z0 = sum softplus(a_0) + H log 2; and
    log_unnormalized(b, v) = v ((1 - b) a_0 + b a) + sum softplus(b (v W + c)).

    Args:
        key: of all chains.
        betas: [T + 1], inverse temperatures from the initial distribution's, 0, to the target's, 1.
        init_sample: key -> x, an exact draw at betas[0].
        log_unnormalized: (beta [], x) -> [], log-density at beta up to a constant.
        transition: (key, beta [], x) -> x, leaves the distribution at beta invariant.
        log_z0: log partition function of log_unnormalized(betas[0], .).
        chains: independent runs.
        chunk: runs at once; None for all. It changes nothing else.
    """

    def weight(chain: Array) -> Array:
        key_init, key_steps = jax.random.split(jax.random.fold_in(key, chain))

        def increment(x: PyTree, beta: Array, beta_next: Array) -> Array:
            return log_unnormalized(beta_next, x) - log_unnormalized(beta, x)

        def anneal(carry: tuple[PyTree, Array], step: tuple) -> tuple[tuple[PyTree, Array], None]:
            x, log_weight = carry
            t, beta, beta_next = step
            log_weight += increment(x, beta, beta_next)
            return (transition(jax.random.fold_in(key_steps, t), beta_next, x), log_weight), None

        x = init_sample(key_init)
        zero = jnp.zeros_like(log_unnormalized(betas[0], x))
        steps = (jnp.arange(betas.shape[0] - 2), betas[:-2], betas[1:-1])
        x, log_weight = jax.lax.scan(anneal, (x, zero), steps)[0]
        return log_weight + increment(x, betas[-2], betas[-1])  # at the target nothing need move on

    log_weights = jax.lax.map(weight, jnp.arange(chains), batch_size=min(chunk or chains, chains))
    mean, stderr = mean_and_stderr(jnp.exp(log_weights - jnp.max(log_weights)))
    return LogPartition(
        log_z=log_z0 + log_mean_exp(log_weights, axis=0),
        stderr=stderr / mean,
        log_weights=log_weights,
        ess=effective_sample_size(log_weights),
    )
