"""Layers of discrete variables with given logits, and their relaxations.

    binary     z = 1 where l + L > 0, L logistic           concrete     y = (l + L) / T, read as sigmoid(y)
    one-hot    z_k = 1 at argmax_k (l_k + G_k), G Gumbel   concrete     y = log softmax((l + G) / T), read as e^y

As T -> 0 what is read of y becomes z. Three relaxations put gradients through a draw:

    concrete           y with its density: another latent-variable model, with a bound of its own. At every T its
                       KL(q | p) is at least that of z, and at equal T in q and p it does not fall with T
    soft               what is read of y, with the log-probability of z, sum_k z_k log p_k, carried on to it: no bound
    straight_through   z with its log-probability, and the derivative of what is read of y: the right bound, its
                       gradient biased

y has a finite density also where what is read of it is 0 or 1 in floating point (Maddison et al., appendix C).

References: Maddison, Mnih & Teh 2017, arXiv 1611.00712 (Concrete); Jang, Gu & Poole 2017, arXiv 1611.01144
(Gumbel-softmax, straight-through); Bengio, Leonard & Courville 2013, arXiv 1308.3432 (straight-through).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from dgm_jax.distributions import bernoulli_log_prob, logistic_log_prob
from dgm_jax.types import Array, Key

RELAXATIONS = ("concrete", "soft", "straight_through")


class Units(NamedTuple):
    """How a layer's variables are drawn given their logits, and what the layers above and below see of them."""

    draw: Callable[[Key, Array], Array]  # (key, logits) -> values of the logits' shape
    log_prob: Callable[[Array, Array], Array]  # (values, logits) -> [...]: of each variable
    read: Callable[[Array], Array]  # values -> in [0, 1], of the same shape


def binary() -> Units:
    """Values 0 and 1; one logit [...] each.

    Draws are right far into both tails. By uniform numbers of 23 binary digits, the default, a 1 at a logit of -30
    comes a million times too often; where draws are weighed by 1 / q, the mean is then too high.
    """

    def draw(key: Key, logits: Array) -> Array:
        rarer = jax.random.bernoulli(key, jax.nn.sigmoid(-jnp.abs(logits)), mode="high")
        return jnp.where(logits > 0, ~rarer, rarer).astype(logits.dtype)

    return Units(draw, bernoulli_log_prob, lambda z: z)


def relaxed_binary(temperature: Array | float, kind: str) -> Units:
    """A relaxation of `binary` at a temperature, of a kind in RELAXATIONS; "concrete" values are the logits y."""

    def draw(key: Key, logits: Array) -> Array:
        return (logits + jax.random.logistic(key, logits.shape, logits.dtype)) / temperature

    def log_prob(y: Array, logits: Array) -> Array:
        return logistic_log_prob(y, logits / temperature, 1 / temperature)

    def round_off(y: Array) -> Array:
        return (y > 0).astype(y.dtype)

    return _relaxed(binary(), Units(draw, log_prob, jax.nn.sigmoid), round_off, kind)


def one_hot() -> Units:
    """One of K, as a vector of 0 and one 1; K logits [..., K]."""

    def draw(key: Key, logits: Array) -> Array:
        return jax.nn.one_hot(jax.random.categorical(key, logits), logits.shape[-1], dtype=logits.dtype)

    return Units(draw, lambda z, logits: jnp.sum(z * jax.nn.log_softmax(logits), -1), lambda z: z)


def relaxed_one_hot(temperature: Array | float, kind: str) -> Units:
    """A relaxation of `one_hot` at a temperature, of a kind in RELAXATIONS; "concrete" values are the logarithms y.

    Their density is that of the K - 1 differences y_k - y_K.
    """

    def draw(key: Key, logits: Array) -> Array:
        return jax.nn.log_softmax((logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / temperature)

    def log_prob(y: Array, logits: Array) -> Array:
        k = logits.shape[-1]
        terms = logits - temperature * y
        constant = math.lgamma(k) + (k - 1) * jnp.log(temperature)
        return constant + jnp.sum(terms, -1) - k * jax.nn.logsumexp(terms, -1)

    def round_off(y: Array) -> Array:
        return jax.nn.one_hot(jnp.argmax(y, -1), y.shape[-1], dtype=y.dtype)

    return _relaxed(one_hot(), Units(draw, log_prob, jnp.exp), round_off, kind)


def _relaxed(discrete: Units, concrete: Units, round_off: Callable[[Array], Array], kind: str) -> Units:
    if kind not in RELAXATIONS:
        raise ValueError(f"unknown relaxation {kind!r}; one of {', '.join(RELAXATIONS)}")

    def soft(key: Key, logits: Array) -> Array:
        return concrete.read(concrete.draw(key, logits))

    def hard(key: Key, logits: Array) -> Array:
        y = concrete.draw(key, logits)
        read = concrete.read(y)
        return round_off(y) + (read - stop_gradient(read))

    if kind == "concrete":
        return concrete
    return discrete._replace(draw=soft if kind == "soft" else hard)
