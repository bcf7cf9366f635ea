"""Log-densities, divergences and samplers, elementwise: callers sum over the event.

Arguments have equal shapes or are scalars; results have that shape, in nats.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from dgm_jax.numerics import log1mexp, masked_mean
from dgm_jax.types import Array, Key


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """x log p + (1 - x) log(1 - p) with p = sigmoid(logits), for x in [0, 1]."""
    # one exp, one log1p, no cancellation for binary x; the branches agree at 0 in all derivatives
    positive = logits >= 0
    linear = jnp.where(positive, (x - 1) * logits, x * logits)
    return linear - jnp.log1p(jnp.exp(jnp.where(positive, -logits, logits)))


def bernoulli_fit(x: Array, mask: Array | None = None) -> Array:
    """Logits of the mean of x [B, ...] over what the mask, [B] or like x, keeps: [...].

    With half a pseudo-count a side, so that a pixel that is never set keeps a finite logit.
    """
    n = x.shape[0] if mask is None else jnp.sum(mask != 0, axis=0)
    mean = masked_mean(x, mask)
    return jnp.log(n * mean + 0.5) - jnp.log(n * (1 - mean) + 0.5)


def bernoulli_entropy(logits: Array) -> Array:
    """Entropy of a Bernoulli variable."""
    log_p, log_not = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.exp(log_p) * log_p - jnp.exp(log_not) * log_not


def bernoulli_kl(logits_q: Array, logits_p: Array) -> Array:
    """KL(q | p) of two Bernoulli variables."""
    on = jax.nn.log_sigmoid(logits_q) - jax.nn.log_sigmoid(logits_p)
    off = jax.nn.log_sigmoid(-logits_q) - jax.nn.log_sigmoid(-logits_p)
    return jax.nn.sigmoid(logits_q) * on + jax.nn.sigmoid(-logits_q) * off


def bernoulli_sample(key: Key, logits: Array, temperature: float = 1.0) -> Array:
    """Draws of 0 and 1 in the logits' dtype and shape; temperature > 0 divides the logits."""
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits / temperature)).astype(logits.dtype)


def categorical_log_prob(index: Array, logits: Array) -> Array:
    """Log-probability of the class index [...] under logits [..., K]; NaN for an index outside [0, K)."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    index = jnp.where(index < 0, logits.shape[-1], index)  # it would count from the end
    return jnp.take_along_axis(log_probs, index[..., None], axis=-1, mode="fill")[..., 0]


def normal_log_prob(x: Array, loc: Array | float, scale: Array | float) -> Array:
    """Log-density of a normal variable with mean loc and standard deviation scale."""
    return standard_normal_log_prob((x - loc) / scale) - jnp.log(scale)


def standard_normal_log_prob(x: Array) -> Array:
    """Log-density of a normal variable with mean 0 and variance 1."""
    return -0.5 * x**2 - 0.5 * math.log(2 * math.pi)


def normal_kl(loc_q: Array, scale_q: Array, loc_p: Array | float, scale_p: Array | float) -> Array:
    """KL(q | p) of two normal variables."""
    ratio = scale_q / scale_p
    shift = (loc_q - loc_p) / scale_p
    # (r - 1)(r + 1), not r^2 - 1, which cancels near r = 1
    return 0.5 * ((ratio - 1) * (ratio + 1) + shift**2) - jnp.log(ratio)


def normal_sample(key: Key, loc: Array, scale: Array | float) -> Array:
    """One draw for each entry of loc, differentiable in loc and scale."""
    return loc + scale * jax.random.normal(key, loc.shape, loc.dtype)


def laplace_log_prob(x: Array, loc: Array | float, scale: Array | float) -> Array:
    """Log-density of a Laplace variable: exp(-|x - loc| / scale) / (2 scale)."""
    return -jnp.abs(x - loc) / scale - jnp.log(2 * scale)


def logistic_log_prob(x: Array, loc: Array | float, scale: Array | float) -> Array:
    """Log-density of a logistic variable."""
    z = (x - loc) / scale
    return jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - jnp.log(scale)


def discretized_logistic_log_prob(
    x: Array, loc: Array, log_scale: Array, bin_width: float, low: float, high: float
) -> Array:
    """Log-mass of the bin around x of a logistic variable; the end bins take the tails.

    Args:
        x: bin centres low, low + bin_width, ..., high.
        loc, log_scale: of the logistic; exp(-log_scale) must be finite and positive.
        bin_width, low, high: of the grid.

    Source: Salimans et al. 2017, PixelCNN++, eq. 2. The difference of two sigmoids is written as
    s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which does not cancel: no fallback to the density is needed.
    """
    inverse_scale = jnp.exp(-log_scale)
    upper = jax.nn.log_sigmoid((x - loc + 0.5 * bin_width) * inverse_scale)
    lower = jax.nn.log_sigmoid(-(x - loc - 0.5 * bin_width) * inverse_scale)
    inside = log1mexp(bin_width * inverse_scale)
    first, last = x < low + 0.5 * bin_width, x > high - 0.5 * bin_width
    return jnp.where(first, upper, jnp.where(last, lower, upper + lower + inside))
