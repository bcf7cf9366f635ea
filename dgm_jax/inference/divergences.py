"""The f-divergences and their variational form (Nowozin et al. 2016, arXiv 1606.00709, tables 1, 2 and 6).

D_f(P | Q) = E_Q[f(p / q)] for convex f, and with the conjugate f*(t) = sup_u (u t - f(u)),

    D_f(P | Q) >= E_P[T] - E_Q[f*(T)],   tight at T = f'(p / q).

P is the data and Q the model. T = g_f(v) maps a free critic output v into the domain of f*; every g_f rises,
so that a large v speaks for P. f(1) = 0, so that equal distributions have divergence 0, but for `gan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.nn import log_sigmoid, softplus
from jax.scipy.special import xlog1py, xlogy

from dgm_jax.numerics import log1mexp
from dgm_jax.types import Array


class Divergence(NamedTuple):
    """One f-divergence; all fields are elementwise."""

    f: Callable[[Array], Array]  # of the density ratio u = p / q >= 0
    conjugate: Callable[[Array], Array]  # f*(t)
    activation: Callable[[Array], Array]  # g_f: free critic output v -> t in the domain of f*
    # v -> f*(g_f(v)) simplified: the composition overflows where this does not
    conjugate_activation: Callable[[Array], Array]
    optimal_critic: Callable[[Array], Array]  # f'(u): the t at which the bound is tight


def _f_gan(u: Array) -> Array:
    # u log u - (u + 1) log(u + 1) without its cancellation at large u
    return -xlog1py(u, 1 / u) - jnp.log1p(u)


_LOG2 = math.log(2)

DIVERGENCES: dict[str, Divergence] = {
    # KL(P | Q)
    "kl": Divergence(
        f=lambda u: xlogy(u, u),
        conjugate=lambda t: jnp.exp(t - 1),
        activation=lambda v: v,
        conjugate_activation=lambda v: jnp.exp(v - 1),
        optimal_critic=lambda u: 1 + jnp.log(u),
    ),
    # KL(Q | P)
    "reverse_kl": Divergence(
        f=lambda u: -jnp.log(u),
        conjugate=lambda t: -1 - jnp.log(-t),
        activation=lambda v: -jnp.exp(-v),
        conjugate_activation=lambda v: v - 1,
        optimal_critic=lambda u: -1 / u,
    ),
    # integral of (p - q)^2 / q; f* is that of f on all of R: for t < -2 above that of f on u >= 0, so still a bound
    "pearson": Divergence(
        f=lambda u: (u - 1) ** 2,
        conjugate=lambda t: t**2 / 4 + t,
        activation=lambda v: v,
        conjugate_activation=lambda v: v**2 / 4 + v,
        optimal_critic=lambda u: 2 * (u - 1),
    ),
    # integral of (sqrt p - sqrt q)^2: in [0, 2], twice the square of what others call the Hellinger distance
    "hellinger": Divergence(
        f=lambda u: (jnp.sqrt(u) - 1) ** 2,
        conjugate=lambda t: t / (1 - t),
        activation=lambda v: -jnp.expm1(-v),
        conjugate_activation=jnp.expm1,
        optimal_critic=lambda u: 1 - 1 / jnp.sqrt(u),
    ),
    # KL(P | M) + KL(Q | M) with M = (P + Q) / 2: in [0, log 4], twice the usual Jensen-Shannon divergence
    "jensen_shannon": Divergence(
        f=lambda u: _f_gan(u) + (1 + u) * _LOG2,
        conjugate=lambda t: -_LOG2 - log1mexp(_LOG2 - t),
        activation=lambda v: _LOG2 + log_sigmoid(v),
        conjugate_activation=lambda v: softplus(v) - _LOG2,
        optimal_critic=lambda u: _LOG2 - jnp.log1p(1 / u),
    ),
    # the above minus log 4: the value of the original game, with T = log D
    "gan": Divergence(
        f=_f_gan,
        conjugate=lambda t: -log1mexp(-t),
        activation=log_sigmoid,
        conjugate_activation=softplus,
        optimal_critic=lambda u: -jnp.log1p(1 / u),
    ),
}
