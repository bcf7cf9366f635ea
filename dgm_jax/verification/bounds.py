"""Checks of bounds, and the importance weights p(x, z) / q(z | x) that they look at."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from dgm_jax.training.compilation import jit_often
from dgm_jax.types import Array, Batch, Model, Params, PyTree
from dgm_jax.verification.space import (
    Measure,
    NotApplicable,
    Result,
    Space,
    labelled,
    measure,
    needs,
    perturbed,
    random_batch,
)

SIGMAS = 4.5  # standard errors that are put down to chance
RARE = 1e-5  # a probability below which a deviation is no accident
EFFECTIVE = 0.1  # share of the draws of a weight that have to count, for its mean to say anything
GRID, POINTS = 4000, 1000  # events where they cannot be listed: of two dimensions, and drawn, of more


class Importance(NamedTuple):
    """Importance weights of all events, after a short training that brings q near the posterior."""

    params: Params
    over: Measure
    log_w: Array  # [draws, N]
    posterior_gap: float  # between log_posterior and log_q of the draws; 0 without log_posterior
    varies: bool  # whether two keys give two draws
    point: bool  # q is a point mass: one z for each x, of probability 1
    effective: float  # share of the draws that count


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
    gap = 0.0
    if model.log_posterior is not None:
        gap = float(jnp.abs(model.log_posterior(params, z, batch) - log_q).max())
    point = not varies and not bool(jnp.any(log_q))
    weights = np.exp(np.asarray(log_w + over.log_weight[None]))
    by_event = weights.mean(0)
    effective = float((by_event**3 / (weights**2).mean(0).clip(1e-300)).sum() / by_event.sum())
    return Importance(params, over, log_w, gap, varies, point, effective)


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


def bound(model: Model, space: Space, seed: int) -> Result:
    """The mean of p(x, z) / q(z | x) over draws sums to one over x, so that its logarithm is a bound.

    Where q is a point mass it is p(x, z) of one z, and sums to less.
    """
    _, over, log_w, gap, varies, point, effective = importance(model, space, seed)
    if not varies and not point:
        return False, "two keys give the same draw, whose log q is not 0"
    if gap > 1e-6:
        return False, f"log_posterior is not the log_q of draw: off by {gap:.2g} nats"
    log_terms = np.asarray(log_w + over.log_weight[None])
    weights = np.exp(log_terms)  # [draws, N]
    draws, n = weights.shape
    by_event, by_draw = weights.mean(0), weights.sum(1)
    total = by_event.sum()
    error = by_draw.std() / math.sqrt(draws) if over.exact else by_event.std() * math.sqrt(n)
    # exp(E log w) <= p(x) holds however far the weights spread
    means = log_terms.mean(0)
    lower = np.exp(means).sum()
    influence = (np.exp(means)[None] * (log_terms - means[None])).sum(1)
    lower_error = influence.std() / math.sqrt(draws) + (0 if over.exact else np.exp(means).std() * math.sqrt(n))
    detail = f"weights sum to {total:.4f} +- {error:.1g}, exp(elbo) to {lower:.4f} over {n} events"
    if lower > 1 + SIGMAS * lower_error + 1e-6 or total > 1 + SIGMAS * error + 1e-6:
        return False, f"above log p: {detail}"
    if point:
        return True, f"{detail}; q is a point mass"
    if effective < EFFECTIVE:
        raise NotApplicable(f"{detail}; the weights are too spread ({effective:.1%} effective) to say more")
    return total >= 1 - SIGMAS * error - 1e-6, detail


def rates(model: Model, space: Space, seed: int) -> Result:
    """Rates and distortion are minus the bound's terms in the mean, event by event, and no rate is negative."""
    needs(model, "rate_distortion", "draw", "log_joint")
    params, over, log_w, *_ = importance(model, space, seed)
    points = labelled(space, over.x)

    @jit_often
    def all_terms(params: Params, draw_keys: Array) -> tuple[Array, Array]:
        assert model.rate_distortion is not None
        rate_distortion = model.rate_distortion
        return jax.lax.map(lambda key: rate_distortion(params, key, points), draw_keys)

    found = all_terms(params, jax.random.split(jax.random.key(seed + 1), len(log_w)))
    rates, distortion = (np.asarray(part) for part in found)  # [draws, N, G], [draws, N]
    minus_elbo, terms = rates.sum(-1) + distortion, np.asarray(log_w)
    draws = len(terms)
    gap = minus_elbo.mean(0) + terms.mean(0)
    error = np.sqrt((minus_elbo.var(0, ddof=1) + terms.var(0, ddof=1)) / draws) + 1e-9
    lowest, lowest_error = rates.mean((0, 1)), rates.mean(1).std(0, ddof=1) / math.sqrt(draws) + 1e-9
    most, least = (stats.t.isf(RARE / among.size, draws - 1) for among in (gap, lowest))  # of so many, by chance
    ok = bool((np.abs(gap) < most * error).all() and (lowest > -least * lowest_error).all())
    return ok, f"{rates.shape[-1]} groups; off the bound by {np.abs(gap / error).max():.1f} standard errors at most"
