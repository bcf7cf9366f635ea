"""Checks of what a model says of its latents: the prior, and pairs (z, x) drawn from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.types import Array, Model, PyTree
from dgm_jax.verification.bounds import SIGMAS
from dgm_jax.verification.space import Result, Space, is_enumerable, labelled, needs, perturbed, states

PAIRS = 2000


def dreamt(model: Model, space: Space, seed: int) -> Result:
    """log_joint - log_prior is a density of x given z, and it is that of the x of each drawn pair.

    Of discrete x it sums to one, and over pairs the means of x and of the log-density itself are as expected; of real x
    Stein's identity holds: E[(x - c) d log p(x | z) / dx] = -1. Latents have the log-densities of those of `prior`.
    """
    needs(model, "dream", "log_prior", "log_joint")
    assert model.dream is not None and model.log_prior is not None and model.log_joint is not None
    dream, log_prior, log_joint = model.dream, model.log_prior, model.log_joint
    params, (key, prior_key) = perturbed(model, space, seed), jax.random.split(jax.random.key(seed))
    cond = labelled(space, jnp.zeros((PAIRS, 1))).get("cond")
    z, x = jax.jit(dream, static_argnums=2)(params, key, PAIRS, cond)
    if x.shape != (PAIRS, *space.shape):
        return False, f"dreams of the shape {x.shape}, not that of events {space.shape}"

    def log_likelihood(z: PyTree, x: Array) -> Array:
        """log p(x | z) [n] of one z without a batch dimension and x [n, *event]."""
        batch = labelled(space, x)
        many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (x.shape[0], *leaf.shape)), z)
        return log_joint(params, many, batch) - log_prior(params, many, batch)

    if is_enumerable(space):
        table = np.asarray(jax.jit(lambda z: jax.lax.map(lambda one: log_likelihood(one, states(space)), z))(z))
        total = np.exp(table).sum(1)
        if np.abs(total - 1).max() > 1e-5:
            return (
                False,
                f"p(x | z) sums to {total.min():.5f} ... {total.max():.5f}: log_prior is not that of log_joint",
            )
        own = np.asarray(jax.jit(jax.vmap(lambda z, x: log_likelihood(z, x[None])[0]))(z, x))
        entropy = -(np.exp(table) * table).sum(1)
        events = np.asarray(states(space)).reshape(table.shape[1], -1)
        means = np.exp(table) @ events
        residuals = np.asarray(x).reshape(PAIRS, -1) - means
        terms, what = np.concatenate([residuals, (own + entropy)[:, None]], axis=1), "x - E[x | z] and log p(x | z)"
        # as they are expected: of a rare value none may be drawn, and the residuals do not show how rare it is
        variances = np.exp(table) @ events**2 - means**2, (np.exp(table) * table**2).sum(1, keepdims=True)
        variance = np.concatenate([variances[0], variances[1] - entropy[:, None] ** 2], axis=1).mean(0)
    else:
        value = jax.grad(lambda x, z: log_likelihood(z, x[None])[0])
        score = np.asarray(jax.jit(jax.vmap(value))(x, z)).reshape(PAIRS, -1)
        centred = np.asarray(x - x.mean(0, keepdims=True)).reshape(PAIRS, -1)
        terms, what = np.concatenate([score, centred * score + 1], axis=1), "Stein's identity given z"
        variance = terms.var(0)
    if model.prior is not None:
        other = jax.jit(model.prior, static_argnums=2)(params, prior_key, PAIRS, cond)
        pair = [np.asarray(log_prior(params, one, labelled(space, x))) for one in (z, other)]
        terms = np.concatenate([terms, (pair[0] - pair[1])[:, None]], axis=1)
        variance = np.append(variance, terms[:, -1].var())
    sigmas = (np.abs(terms.mean(0)) / (np.sqrt(np.maximum(variance, 0) / PAIRS) + 1e-9)).max()
    return bool(sigmas < SIGMAS + 0.5), f"{what} within {sigmas:.1f} standard errors, {PAIRS} pairs"
