"""Variational bounds on log p(x), from `draw` and `log_joint` alone.

    log w_i = log p(x, z_i) - log q(z_i | x),  z_i ~ q(z | x)        bound = log mean_i w_i <= log p(x)

k = 1 is the ELBO, and the bound rises with k. Under the name "elbo" losses log, and evaluation reports, its negative,
the bound on -log p(x): lower is better, as for "nll" and "iwae_<k>".

Let theta be the parameters as log p(x, z) reads them, phi the same as q reads them, and v_i = w_i / sum_j w_j. Three
gradients, with z_i a function of noise and phi:

    plain   sum_i v_i d log w_i. Unbiased; its signal to noise ratio in phi falls with k
    stl     without the score, d log q(z_i | x) / dphi at fixed z_i. Unbiased at k = 1, biased in phi for k > 1;
            without variance in phi where q is the posterior
    dreg    v_i^2 in place of v_i in what stl leaves of phi. Unbiased at every k; stl at k = 1

References: Burda et al. 2016, arXiv 1509.00519; plain: Rainforth et al. 2018, arXiv 1802.04537; stl: Roeder
et al. 2017, arXiv 1703.09194; dreg: Tucker et al. 2019, arXiv 1810.04152.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from dgm_jax.inference.importance import effective_sample_size
from dgm_jax.numerics import log_mean_exp, masked_mean
from dgm_jax.objectives import require
from dgm_jax.training.learners import per_example
from dgm_jax.types import Array, Batch, Key, Loss, Metrics, Model, Out, Params, PyTree

GRADIENTS = ("plain", "stl", "dreg")


def elbo(model: Model, gradient: str = "plain") -> Loss:
    """The evidence lower bound from one draw: `iwae` with k = 1, where "dreg" is "stl".

    Args:
        model: needs `draw`, reparametrised, and `log_joint`; for "stl" `log_posterior`.
        gradient: "plain" or "stl".

    Raises:
        TypeError: the model lacks a capability.
        ValueError: an unknown gradient.
    """
    if gradient not in ("plain", "stl"):
        raise ValueError(f"unknown gradient {gradient!r} of one draw; one of plain, stl")
    draw, log_joint = require(model, "draw", "log_joint", by="elbo")
    if gradient == "stl":
        (log_posterior,) = require(model, "log_posterior", by="elbo with gradient='stl'")

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        z, log_q = draw(params, jax.random.fold_in(key, 0), batch)
        if gradient == "stl":
            log_q = log_posterior(stop_gradient(params), z, batch)
        return {"loss": log_q - log_joint(params, z, batch)}

    return per_example(terms)


def beta_vae(model: Model, beta: float = 1.0, free: float = 0.0, warmup: int = 0) -> Loss:
    """Distortion + beta rate, with what holds the rate up: the ELBO where beta = 1 and nothing else is set.

    References: beta: Higgins et al. 2017; free nats: Kingma et al. 2016, arXiv 1606.04934, eq. 15; warm-up: Bowman et
    al. 2016, arXiv 1511.06349, and Sonderby et al. 2016, arXiv 1602.02282.

    Args:
        model: needs `rate_distortion`.
        beta: weight of the rate.
        free: nats of each group of latents that cost nothing: what is descended is max(free, mean rate of the group
            over the batch, or over each of its parts where it is taken in micro-batches or under pmap).
        warmup: steps over which the rate's weight rises from 0 to beta.

    Returns:
        A Loss with the terms "loss", "elbo", "rate" and "distortion", whose carry counts the steps of a warm-up.

    Raises:
        TypeError: the model lacks the capability.
    """
    (rate_distortion,) = require(model, "rate_distortion", by="beta_vae")

    def init(params: Params, key: Key, batch: Batch) -> PyTree:
        return {"step": jnp.zeros((), jnp.int32)} if warmup else ()

    def apply(params: Params, carry: PyTree, key: Key, batch: Batch) -> tuple[Array, Out]:
        rates, distortion = rate_distortion(params, jax.random.fold_in(key, 0), batch)
        rates, distortion = masked_mean(rates, batch.get("mask")), masked_mean(distortion, batch.get("mask"))
        weight = beta * jnp.minimum(carry["step"] / warmup, 1.0) if warmup else beta
        carry = {"step": carry["step"] + 1} if warmup else ()
        loss = distortion + weight * jnp.maximum(rates, free).sum() if free else distortion + weight * rates.sum()
        metrics = {"loss": loss, "elbo": distortion + rates.sum(), "rate": rates.sum(), "distortion": distortion}
        return loss, Out(metrics, carry)

    return Loss(init, apply)


def iwae(model: Model, k: int = 5, gradient: str = "plain") -> Loss:
    """The importance-weighted bound.

    Args:
        model: needs `draw`, reparametrised, and `log_joint`; for "stl" and "dreg" `log_posterior`.
        k: draws for each example; draw i has the key fold_in(key, i).
        gradient: "plain", "stl" or "dreg".

    Returns:
        A Loss with the terms "loss", minus the bound, and for k > 1 "elbo", the mean of -log w_i, and "ess",
        1 / sum_i v_i^2, the effective number of draws.

    Raises:
        TypeError: the model lacks a capability.
        ValueError: an unknown gradient.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}; one of {', '.join(GRADIENTS)}")
    draw, log_joint = map(_over_draws, require(model, "draw", "log_joint", by="iwae"))
    if gradient != "plain":
        (log_posterior,) = map(_over_draws, require(model, "log_posterior", by=f"iwae with gradient={gradient!r}"))

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(k))
        z, log_q = draw(params, keys, batch)
        if gradient != "plain":
            held = stop_gradient(params)
            if gradient == "dreg":
                log_w = log_joint(held, z, batch) - log_posterior(held, z, batch)
                # the second factor of v_i; the first comes with the gradient of log mean w
                z = scale_gradient(z, stop_gradient(jax.nn.softmax(log_w, axis=0)))
            log_q = log_posterior(held, z, batch)
        log_w = log_joint(params, z, batch) - log_q
        loss = {"loss": -log_mean_exp(log_w, axis=0)}
        if k == 1:
            return loss
        return loss | {"elbo": -jnp.mean(log_w, axis=0), "ess": effective_sample_size(log_w)}

    return per_example(terms)


def _over_draws(f: Callable) -> Callable:
    """f(params, ., batch) mapped over k draws alone: what it computes from x, it computes once."""
    return jax.vmap(f, (None, 0, None))


@jax.custom_vjp
def scale_gradient(z: PyTree, factor: Array) -> PyTree:
    """z, leaves [k, B, ...], with its cotangent multiplied by factor [k, B].

    It leaves z itself in place, so that the compiler merges the two evaluations of log w; with
    stop_gradient(z) + factor * (z - stop_gradient(z)) it could not.
    """
    return z


def _scale_gradient_fwd(z: PyTree, factor: Array) -> tuple[PyTree, Array]:
    return z, factor


def _scale_gradient_bwd(factor: Array, cotangent: PyTree) -> tuple[PyTree, Array]:
    def scaled(c: Array) -> Array:
        return c * jnp.expand_dims(factor, range(factor.ndim, c.ndim)).astype(c.dtype)

    return jax.tree.map(scaled, cotangent), jnp.zeros_like(factor)


scale_gradient.defvjp(_scale_gradient_fwd, _scale_gradient_bwd)
