"""Posteriors q(z | x) of a vector z, given what an encoder says of x; each is a base N(m, s^2), perhaps moved on.

diagonal    z = m + s noise
planar      z <- z + u tanh(w.z + b), T times, with u, w and b from the encoder
            (Rezende & Mohamed 2015, arXiv 1505.05770, eq. 10-15; u is bent so that w.u > -1, appendix A.1)
iaf         z <- g(z, h) z + (1 - g(z, h)) f(z, h), T times, with autoregressive f and gates g, in turn in the order
            of z and in the opposite one; h is from the encoder (Kingma et al. 2016, arXiv 1606.04934, algorithm 1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.distributions import standard_normal_log_prob
from dgm_jax.models.autoregressive import made
from dgm_jax.nets.masked import made_degrees
from dgm_jax.numerics import safe_log, sum_event
from dgm_jax.types import Array, Key, Params

Normal = tuple[Array, Array]  # mean and standard deviation
OPEN = 2.0  # what a gate of IAF starts at, before the sigmoid: nearly the identity


class Posterior(NamedTuple):
    """q(z | raw) for z [B, L]; params are its own."""

    size: int  # of raw [B, size], what the encoder gives
    init: Callable[[Key], Params]
    draw: Callable[[Params, Key, Array], tuple[Array, Array]]  # (params, key, raw) -> (z, log_q [B])
    center: Callable[[Params, Array], Array]  # (params, raw) -> z, where the base's mean comes to lie
    log_prob: Callable[[Params, Array, Array], Array] | None  # (params, z, raw) -> [B]; None: it cannot be inverted
    # raw -> mean and log standard deviation of z, [B, L] each; None: its dimensions are not independent and normal
    normal: Callable[[Array], tuple[Array, Array]] | None = None


def diagonal(latent: int) -> Posterior:
    """A diagonal normal distribution."""

    def draw(params: Params, key: Key, raw: Array) -> tuple[Array, Array]:
        loc, log_scale = split(raw, latent)
        noise = jax.random.normal(key, loc.shape, loc.dtype)
        return loc + jnp.exp(log_scale) * noise, sum_event(standard_normal_log_prob(noise) - log_scale)

    def log_prob(params: Params, z: Array, raw: Array) -> Array:
        loc, log_scale = split(raw, latent)
        return sum_event(standard_normal_log_prob((z - loc) * jnp.exp(-log_scale)) - log_scale)

    def center(params: Params, raw: Array) -> Array:
        return split(raw, latent)[0]

    return Posterior(2 * latent, lambda key: {}, draw, center, log_prob, lambda raw: split(raw, latent))


def planar(latent: int, flows: int) -> Posterior:
    """Planar flows from a diagonal normal distribution; they have no inverse in closed form."""
    base = diagonal(latent)

    def flow(z: Array, raw: Array) -> tuple[Array, Array]:
        """z after all flows, and the log-determinant."""
        each = raw[:, base.size :].reshape(-1, flows, 2 * latent + 1)

        def step(carry: tuple[Array, Array], one: Array) -> tuple[tuple[Array, Array], None]:
            z, log_det = carry
            w, u, b = one[:, :latent], one[:, latent:-1], one[:, -1:]
            along = (w * u).sum(-1, keepdims=True)
            u += (jax.nn.softplus(along) - 1 - along) * w / jnp.maximum((w**2).sum(-1, keepdims=True), 1e-12)
            height = jnp.tanh((w * z).sum(-1, keepdims=True) + b)
            slope = height[:, 0] ** 2  # by softplus(w.u), 1 more than w.u is by now, this is not lost to rounding
            log_det += safe_log(slope + (1 - slope) * jax.nn.softplus(along[:, 0]))
            return (z + u * height, log_det), None

        return jax.lax.scan(step, (z, jnp.zeros_like(z[:, 0])), jnp.moveaxis(each, 1, 0))[0]

    def draw(params: Params, key: Key, raw: Array) -> tuple[Array, Array]:
        z, log_q = base.draw({}, key, raw)
        z, log_det = flow(z, raw)
        return z, log_q - log_det

    def center(params: Params, raw: Array) -> Array:
        return flow(base.center({}, raw), raw)[0]

    return Posterior(base.size + flows * (2 * latent + 1), lambda key: {}, draw, center, None)


def iaf(latent: int, flows: int, hidden: Sequence[int], activation: str) -> Posterior:
    """Inverse autoregressive flows from a diagonal normal distribution: fast to draw, slow to invert.

    Args:
        latent: L, of z; the encoder gives as many numbers of context h.
        flows: T.
        hidden: widths of the hidden layers of each flow's MADE.
        activation: of them.
    """
    base = diagonal(latent)
    net = made.Network(tuple(hidden), 2, activation, dropout=0.0, direct=False)
    degrees = [jnp.asarray(layer) for layer in made_degrees(np.random.default_rng(0), latent, hidden, True)]

    def parts(params: Params, z: Array, context: Array) -> tuple[Array, Array, Array]:
        """Gates, their logarithms and f."""
        raw = jnp.asarray(net.apply({"params": params}, z, degrees, context, deterministic=True))
        logit = raw[..., 0] + OPEN
        return jax.nn.sigmoid(logit), jax.nn.log_sigmoid(logit), raw[..., 1]

    def init(key: Key) -> Params:
        nothing = jnp.zeros((1, latent))
        return jax.vmap(lambda key: net.init(key, nothing, degrees, nothing, deterministic=True)["params"])(
            jax.random.split(key, flows)
        )

    def flow(params: Params, z: Array, raw: Array) -> tuple[Array, Array]:
        def step(carry: tuple[Array, Array], own: Params) -> tuple[tuple[Array, Array], None]:
            z, log_det = carry
            gate, log_gate, move = parts(own, z, raw[:, base.size :])
            return ((gate * z + (1 - gate) * move)[:, ::-1], log_det + sum_event(log_gate)), None

        return jax.lax.scan(step, (z, jnp.zeros_like(z[:, 0])), params)[0]

    def draw(params: Params, key: Key, raw: Array) -> tuple[Array, Array]:
        z, log_q = base.draw({}, key, raw)
        z, log_det = flow(params, z, raw)
        return z, log_q - log_det

    def center(params: Params, raw: Array) -> Array:
        return flow(params, base.center({}, raw), raw)[0]

    def log_prob(params: Params, z: Array, raw: Array) -> Array:
        (loc, log_scale), context = split(raw, latent), raw[:, base.size :]

        def back(carry: tuple[Array, Array], own: Params) -> tuple[tuple[Array, Array], None]:
            moved, log_det = carry[0][:, ::-1], carry[1]

            def fix(z: Array, nothing: None) -> tuple[Array, None]:
                gate, _, move = parts(own, z, context)
                return (moved - (1 - gate) * move) / gate, None

            # pass i sets dimension i right: what it is made from are those before it
            z = jax.lax.scan(fix, moved, None, length=latent)[0]
            return (z, log_det + sum_event(parts(own, z, context)[1])), None

        z, log_det = jax.lax.scan(back, (z, jnp.zeros_like(z[:, 0])), params, reverse=True)[0]
        noise = (z - loc) * jnp.exp(-log_scale)
        return sum_event(standard_normal_log_prob(noise) - log_scale) - log_det

    return Posterior(3 * latent, init, draw, center, log_prob)


def split(raw: Array, latent: int) -> tuple[Array, Array]:
    """Mean and log standard deviation of the base, [B, L] each."""
    return raw[:, :latent], raw[:, latent : 2 * latent]


def normal_of(raw: Array) -> Normal:
    """A normal distribution from what a net says of it, [..., 2 n]: means and log standard deviations, [..., n]."""
    loc, log_scale = jnp.split(raw, 2, axis=-1)
    return loc, jnp.exp(log_scale)
