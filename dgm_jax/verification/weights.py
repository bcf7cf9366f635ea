"""Importance weights p(x, z) / q(z | x) of a model that can draw: what the checks of bounds look at."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dgm_jax.training.compilation import jit_often
from dgm_jax.types import Array, Batch, Model, Params, PyTree
from dgm_jax.verification.space import Measure, Space, labelled, measure, needs, perturbed, random_batch

GRID, POINTS = 4000, 1000  # events where they cannot be listed: of two dimensions, and drawn, of more


class Importance(NamedTuple):
    """Importance weights of all events, after a short training that brings q near the posterior."""

    params: Params
    over: Measure
    log_w: Array  # [draws, N]
    posterior_gap: float  # between log_posterior and log_q of the draws; 0 without log_posterior
    varies: bool  # whether two keys give two draws
    point: bool  # q is a point mass: one z for each x, of probability 1


@functools.lru_cache(maxsize=1)
def importance(model: Model, space: Space, seed: int) -> Importance:
    """The weights p(x, z) / q(z | x) that `bound` and `sampled` look at."""
    needs(model, "draw", "log_joint")
    assert model.draw is not None and model.log_joint is not None
    draw, log_joint = model.draw, model.log_joint
    fit_key, key = jax.random.split(jax.random.key(seed))
    batch = random_batch(space, seed, 32)
    params = fitted(model, perturbed(model, space, seed), batch, fit_key)
    over = measure(model, space, params, seed, GRID if math.prod(space.shape) <= 2 else POINTS)
    points = labelled(space, over.x)

    @jit_often
    def log_weights(params: Params, draw_keys: Array) -> Array:
        def one(key: Array) -> Array:
            z, log_q = draw(params, key, points)
            return log_joint(params, z, points) - log_q

        return jax.lax.map(one, draw_keys)

    count = max(16, min(1000, (200_000 if over.exact else 20_000) // len(over.x)))
    log_w = log_weights(params, jax.random.split(key, count))
    z, log_q = draw(params, jax.random.fold_in(key, count), batch)
    other, _ = draw(params, jax.random.fold_in(key, count + 1), batch)
    varies = any(bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(z), jax.tree.leaves(other), strict=True))
    point = not varies and not bool(jnp.any(log_q))
    gap = 0.0
    if model.log_posterior is not None:
        gap = float(jnp.abs(model.log_posterior(params, z, batch) - log_q).max())
    return Importance(params, over, log_w, gap, varies, point)


def fitted(model: Model, params: Params, batch: Batch, key: Array, steps: int = 300) -> Params:
    """Parameters after a short training by the evidence lower bound."""
    draw, log_joint = model.draw, model.log_joint
    assert draw is not None and log_joint is not None
    tx = optax.adam(0.02)

    def loss(params: Params, key: Array) -> Array:
        z, log_q = draw(params, key, batch)
        return jnp.mean(log_q - log_joint(params, z, batch))

    @jit_often
    def step(params: Params, opt: PyTree, key: Array) -> tuple[Params, PyTree]:
        updates, opt = tx.update(jax.grad(loss)(params, key), opt)
        return optax.apply_updates(params, updates), opt

    opt = tx.init(params)
    for t in range(steps):
        params, opt = step(params, opt, jax.random.fold_in(key, t))
    return params
