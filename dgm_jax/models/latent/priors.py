"""Priors p(z) of a vector z: what a VAE's latents are drawn from.

normal      N(0, I)
vamp        1/K sum_k q(z | u_k), with learned pseudo-inputs u_k (Tomczak & Welling 2018, arXiv 1705.07120, eq. 9)
of_model    any Model with log_prob and sample; a MADE of Gaussian mixtures makes it autoregressive
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.distributions import normal_kl, standard_normal_log_prob
from dgm_jax.models.latent.posteriors import split
from dgm_jax.numerics import log_mean_exp, sum_event
from dgm_jax.types import Array, Key, Model, Params

PLACES = 1000  # draws of N(0, I) that a model's first parameters are fitted to
Encode = Callable[[Params, Array], Array]


class Prior(NamedTuple):
    """p(z) for z [B, L]. params are those of the whole model, with the prior's own under "prior"."""

    init: Callable[[Key, Array], Params]  # (key, x [B, ...] as the encoder reads it) -> its own
    log_prob: Callable[[Params, Array], Array]  # (params, z) -> [B]
    sample: Callable[[Params, Key, int, float], Array]  # (params, key, n, temperature) -> z [n, L]
    # mean and log standard deviation of a diagonal normal q -> KL(q | p) of each latent [B, L]; None: no closed form
    kl: Callable[[Array, Array], Array] | None = None


def normal(latent: int) -> Prior:
    """The standard normal distribution; temperature scales its standard deviation."""

    def sample(params: Params, key: Key, n: int, temperature: float) -> Array:
        return temperature * jax.random.normal(key, (n, latent), jax.tree.leaves(params)[0].dtype)

    def log_prob(params: Params, z: Array) -> Array:
        return sum_event(standard_normal_log_prob(z))

    def kl(loc: Array, log_scale: Array) -> Array:
        return normal_kl(loc, jnp.exp(log_scale), 0.0, 1.0)

    return Prior(lambda key, x: {}, log_prob, sample, kl)


def vamp(latent: int, components: int, encode: Encode) -> Prior:
    """A mixture of the posteriors of pseudo-inputs, which start as examples with noise.

    Args:
        latent: L.
        components: K.
        encode: (params, u [K, ...] as the encoder reads it) -> raw [K, 2 L] of a diagonal posterior.
    """

    def init(key: Key, x: Array) -> Params:
        noise = jax.random.normal(key, (components, *x.shape[1:]), x.dtype)
        return {"inputs": x[jnp.arange(components) % x.shape[0]] + 0.1 * noise}

    def parts(params: Params) -> tuple[Array, Array]:
        return split(encode(params, params["prior"]["inputs"]), latent)

    def log_prob(params: Params, z: Array) -> Array:
        loc, log_scale = parts(params)
        each = standard_normal_log_prob((z[:, None] - loc[None]) * jnp.exp(-log_scale)[None]) - log_scale[None]
        return log_mean_exp(each.sum(-1), axis=1)

    def sample(params: Params, key: Key, n: int, temperature: float) -> Array:
        choice_key, noise_key = jax.random.split(key)
        chosen = jax.random.randint(choice_key, (n,), 0, components)
        loc, log_scale = (part[chosen] for part in parts(params))
        return loc + temperature * jnp.exp(log_scale) * jax.random.normal(noise_key, loc.shape, loc.dtype)

    return Prior(init, log_prob, sample)


def of_model(latent: int, model: Model) -> Prior:
    """The prior that a model of vectors is."""
    assert model.log_prob is not None and model.sample is not None
    log_prob, sample = model.log_prob, model.sample

    def init(key: Key, x: Array) -> Params:
        z_key, model_key = jax.random.split(key)
        return model.init(model_key, {"x": jax.random.normal(z_key, (PLACES, latent), x.dtype)})

    return Prior(
        init,
        lambda params, z: log_prob(params["prior"], None, {"x": z}),
        lambda params, key, n, temperature: sample(params["prior"], key, n, temperature=temperature),
    )
