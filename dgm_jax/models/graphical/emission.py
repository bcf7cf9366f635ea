"""Binary vectors emitted by one of K states: what a mixture and a hidden Markov model share.

    p(x | state k) = prod_d sigmoid(logits_kd)^x_d (1 - sigmoid(logits_kd))^(1 - x_d)

x and observed are [N, D]; observed = None means that all is. Unobserved dimensions are left out of the product,
which is what summing over their values comes to.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgm_jax.numerics import safe_log
from dgm_jax.types import Array, Key

EXACT = jax.lax.Precision.HIGHEST  # accelerators round factors by default: nats, in a sum over pixels


def log_likelihood(logits: Array, x: Array, observed: Array | None = None) -> Array:
    """log p(x | k), [N, K]."""
    log_off = -jax.nn.softplus(logits)
    if observed is None:
        return jnp.matmul(x, logits.T, precision=EXACT) + log_off.sum(-1)[None]
    seen = jnp.matmul(observed, log_off.T, precision=EXACT)
    return jnp.matmul(x * observed, logits.T, precision=EXACT) + seen


def statistics(weights: Array, x: Array, observed: Array | None = None) -> dict[str, Array]:
    """Expected counts under p(k | x) = weights [N, K]: ones [K, D], and observations [K, D]."""
    if observed is None:
        shape = weights.shape[1], x.shape[1]
        seen = jnp.broadcast_to(weights.sum(0)[:, None], shape)
        return {"ones": jnp.matmul(weights.T, x, precision=EXACT), "seen": seen}
    ones = jnp.matmul(weights.T, x * observed, precision=EXACT)
    return {"ones": ones, "seen": jnp.matmul(weights.T, observed, precision=EXACT)}


def maximize(ones: Array, seen: Array, strength: float) -> Array:
    """The logits [K, D] of greatest posterior density given the counts.

    The prior of a state's pixel counts as `strength` observations of that pixel's mean over all states. A
    symmetric prior would draw ink into the margins of every state.
    """
    mean = (ones.sum(0) + 0.5) / (seen.sum(0) + 1)
    on = ones + strength * mean[None]
    off = seen - ones + strength * (1 - mean)[None]
    return safe_log(on) - safe_log(off)


def from_rows(key: Key, count: int, x: Array, observed: Array | None, mask: Array) -> Array:
    """Initial logits [count, D]: half the mean of the data, half a random example, and noise to break ties.

    mask [N] is 0 for what is no data.
    """
    row_key, noise_key = jax.random.split(key)
    known = jnp.ones_like(x) if observed is None else observed
    known = known * (mask != 0)[:, None]
    mean = (jnp.where(known != 0, x, 0).sum(0) + 0.5) / (known.sum(0) + 1)
    filled = jnp.where(known != 0, x, jnp.broadcast_to(mean, x.shape))
    chosen = filled[jax.random.choice(row_key, x.shape[0], (count,), p=mask / mask.sum())]
    noise = jax.random.uniform(noise_key, chosen.shape, x.dtype, 0.25, 0.75)
    probability = 0.45 * mean[None] + 0.45 * chosen + 0.1 * noise
    return jnp.log(probability) - jnp.log1p(-probability)
