"""Reductions and elementary functions that keep value and gradient finite where the naive form does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgm_jax.types import Array

log1mexp = jax.nn.log1mexp  # log(1 - exp(-x)) for x > 0: note the sign


def sum_event(x: Array) -> Array:
    """Sum over all axes but the first: [B, *event] -> [B]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def masked_mean(values: Array, mask: Array | None = None) -> Array:
    """Mean over the leading axis of the entries that the mask keeps.

    Args:
        values: [B, ...]; padding may hold anything, NaN too.
        mask: [B] or like values, 0 = padding or missing, or None for none.

    Returns:
        [...]; 0 where the mask is empty. What it leaves out has gradient 0.
    """
    if mask is None:
        return jnp.mean(values, axis=0)
    total = jnp.sum(jnp.where(_keep(values, mask), values, 0), axis=0)
    return total / jnp.maximum(jnp.sum(mask != 0, axis=0), 1)


def mean_and_stderr(values: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Mean over the leading axis and its standard error; arguments as in masked_mean.

    Returns:
        (mean [...], stderr [...]); stderr is inf for fewer than two values, which show no spread.
    """
    mean = masked_mean(values, mask)
    deviation, count = values - mean[None], jnp.asarray(values.shape[0])
    if mask is not None:
        deviation, count = jnp.where(_keep(values, mask), deviation, 0), jnp.sum(mask != 0, axis=0)
    # divided twice: the product of the counts would overflow int32
    variance = jnp.sum(deviation**2, axis=0) / jnp.maximum(count - 1, 1) / jnp.maximum(count, 1)
    # the square root has no gradient at 0: keep it away from there
    spread = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return mean, jnp.where(count > 1, spread, jnp.inf)


def _keep(values: Array, mask: Array) -> Array:
    """The mask as booleans that broadcast over values [B, ...]."""
    return jnp.expand_dims(mask != 0, tuple(range(mask.ndim, values.ndim)))


def log_mean_exp(x: Array, axis: int) -> Array:
    """Logarithm of the mean of exp(x) over an axis; -inf with gradient 0 where all of x is -inf."""
    dead = jnp.all(x == -jnp.inf, axis=axis, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(dead, 0, x), axis=axis)
    return jnp.where(jnp.squeeze(dead, axis), -jnp.inf, total - jnp.log(x.shape[axis]))


def softplus_inverse(x: Array) -> Array:
    """The y with softplus(y) = x, for x > 0."""
    return x + log1mexp(x)


def safe_log(x: Array) -> Array:
    """log(x) for x >= 0, floored at the smallest normal number of the dtype; gradient 0 below it."""
    tiny = jnp.finfo(x.dtype).tiny
    return jnp.log(jnp.where(x > tiny, x, tiny))
