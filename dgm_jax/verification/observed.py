"""A check of models that take missing dimensions: what is hidden is neither read nor scored."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree
from dgm_jax.verification.bounds import SIGMAS, fitted
from dgm_jax.verification.drawn import distribution
from dgm_jax.verification.space import (
    NotApplicable,
    Result,
    Space,
    is_enumerable,
    labelled,
    needs,
    perturbed,
    random_batch,
    states,
)

DRAWS = 1000  # of a bound's weights


def marginalised(model: Model, space: Space, seed: int) -> Result:
    """Other values where nothing is observed change nothing; and what is observed has its marginal probabilities, of
    which a bound is only asked that they sum to one.

    A model that reads and scores zeros in their place passes the first and not the second.
    """
    needs(model, "observed")
    params, key, rng = perturbed(model, space, seed), jax.random.key(seed), np.random.default_rng(seed)
    batch, other = random_batch(space, seed, 6), random_batch(space, seed + 1, 6)
    observed = rng.random(batch["x"].shape) < 0.5
    shown = batch | {"observed": jnp.asarray(observed, batch["x"].dtype)}
    outcomes = jax.jit(lambda params, batch: _outcomes(model, params, key, batch))
    found = outcomes(params, shown)
    changed = outcomes(params, shown | {"x": jnp.where(observed, batch["x"], other["x"])})
    if read := [name for name in found if not _equal(found[name], changed[name])]:
        return False, f"what is not observed changes {', '.join(read)}"
    some = rng.random(space.shape) < 0.5
    if model.log_prob is not None and is_enumerable(space):
        gap, n = _off_the_marginals(model, space, seed, some)
        return (
            gap < 1e-6,
            f"p of {n} states of what is observed is off the sum over the rest by {gap:.1g}",
        )
    try:
        total, error, how = _total(model, space, params, key, some)
    except NotApplicable as why:
        return True, f"{len(found)} capabilities read nothing of it; {why}"
    return abs(total - 1) <= 1e-5 + SIGMAS * error, f"{how} of what is observed sum to {total:.6f} (+- {error:.1g})"


def _outcomes(model: Model, params: Params, key: Key, batch: Batch) -> dict[str, PyTree]:
    """What each capability that takes a batch makes of it."""
    calls: dict[str, Callable[[], PyTree]] = {"init": lambda: model.init(key, batch)}
    for name in ("log_prob", "log_conditionals", "predict", "energy", "encode"):
        calls[name] = lambda name=name: getattr(model, name)(params, None, batch)
    for name in ("draw", "rate_distortion", "expect", "complete"):
        calls[name] = lambda name=name: getattr(model, name)(params, key, batch)
    for name in ("log_joint", "log_posterior"):
        calls[name] = lambda name=name: getattr(model, name)(params, model.draw(params, key, batch)[0], batch)
    return {name: call() for name, call in calls.items() if getattr(model, name) is not None}


def _equal(a: PyTree, b: PyTree) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _batch(space: Space, observed: np.ndarray) -> Batch:
    """All that the observed dimensions can be."""
    x = states(space)
    hidden = np.asarray(x)[:, ~observed]
    x = x[np.flatnonzero((hidden == space.values[0]).all(1))]
    return labelled(space, x) | {"observed": jnp.broadcast_to(observed, x.shape).astype(x.dtype)}


def _off_the_marginals(model: Model, space: Space, seed: int, observed: np.ndarray) -> tuple[float, int]:
    """The largest gap between p of what is observed and the sum of p over what is hidden, and of how many states."""
    assert model.log_prob is not None
    log_prob, batch = model.log_prob, _batch(space, observed)
    found = np.exp(jax.jit(lambda params: log_prob(params, None, batch))(perturbed(model, space, seed)))
    p = distribution(model, space, seed)[1].reshape([len(space.values)] * observed.size)
    sums = p.sum(tuple(np.flatnonzero(~observed.reshape(-1)))).reshape(-1)
    return float(np.abs(found - sums).max()), len(sums)


def _total(model: Model, space: Space, params: Params, key: Key, observed: np.ndarray) -> tuple[float, float, str]:
    """The sum of p over all that the observed dimensions can be, its standard error, and what was summed."""
    if not is_enumerable(space):
        raise NotApplicable("the events cannot be summed over")
    batch = _batch(space, observed)
    if model.draw is None or model.log_joint is None:
        raise NotApplicable("the model has neither probabilities nor a bound")
    fit_key, key = jax.random.split(key)
    params = fitted(model, params, batch, fit_key)  # weights of a q that is far from the posterior are too uneven

    @jax.jit
    def weights(params: Params) -> Array:
        def one(key: Key) -> Array:
            z, log_q = model.draw(params, key, batch)
            return jnp.exp(model.log_joint(params, z, batch) - log_q)

        return jax.lax.map(one, jax.random.split(key, DRAWS)).sum(1)

    sums = np.asarray(weights(params))
    error = float(sums.std(ddof=1)) / math.sqrt(DRAWS)
    if error > 0.1:
        raise NotApplicable("the weights are too uneven to be summed")
    return float(sums.mean()), error, f"weights of {len(batch['x'])} states"
