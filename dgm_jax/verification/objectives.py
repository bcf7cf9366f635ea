"""Checks of an objective besides its gradient: padding counts for nothing, and EM ascends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.types import Batch, Counts, Model, PyTree
from dgm_jax.verification.gradients import KEYS, Descents, Objective
from dgm_jax.verification.space import NotApplicable, Result, Space, perturbed, random_batch


def padding_ignored(objective: Objective, each: Descents, model: Model, space: Space, seed: int) -> Result:
    """What a masked example holds changes neither loss nor gradient, nor the statistics of EM; nor, where nothing is
    drawn, does that it is there.
    """
    keys, kept = jax.random.split(jax.random.key(seed), KEYS), 6
    batch, other = (jax.tree.map(np.asarray, random_batch(space, seed + i, 8)) for i in (0, 1))
    padded = jax.tree.map(lambda a, b: np.concatenate([a[:kept], b[kept:]]), batch, other)
    mask = (np.arange(8) < kept).astype(float)
    pair = [jax.tree.map(jnp.asarray, one | {"mask": mask}) for one in (batch, padded)]
    alone = jax.tree.map(lambda a: jnp.asarray(a[:kept]), batch)
    params = perturbed(model, space, seed)

    @jax.jit
    def expected(one: Batch) -> PyTree:
        assert isinstance(objective, Counts)
        statistics, likelihood = jax.vmap(lambda key: objective.expect(params, key, one))(keys)
        return statistics, likelihood[:, :kept]

    def measured(one: Batch) -> PyTree:
        """Of each key, leaves [KEYS, ...]."""
        if isinstance(objective, Counts):
            return expected(one)
        return [d.measure(d.own, d.carry, keys, one, d.directions) for d in each()]

    whole, padded = map(measured, pair)
    gap = _distance(whole, padded)
    if _distance(*(jax.tree.map(lambda x, i=i: x[i], whole) for i in (0, 1))) == 0:
        gap = np.max([gap, _distance(measured(alone), whole)])
    return bool(gap <= 1e-9), f"largest change {gap:.1g}, relative"


def em_ascends(objective: Objective, model: Model, space: Space, seed: int) -> Result:
    """Statistics are sums over examples, and EM on a fixed batch never lowers its likelihood.

    The statistics are multiplied by a million, as of so many copies of the batch, so that a prior, under which
    the likelihood alone may fall, weighs nothing.
    """
    if not isinstance(objective, Counts):
        raise NotApplicable("the objective is not EM's")
    key, batch, params = jax.random.key(seed), random_batch(space, seed, 24), perturbed(model, space, seed)
    expect, maximize = jax.jit(objective.expect), jax.jit(objective.maximize)
    whole, _ = expect(params, key, batch)
    again, _ = expect(params, jax.random.fold_in(key, 0), batch)
    if _distance(whole, again) == 0:  # a random E-step adds up in the mean only
        halves = [expect(params, key, jax.tree.map(lambda x, s=s: x[s], batch))[0] for s in _cut(24)]
        gap = _distance(whole, jax.tree.map(jnp.add, *halves))
        if gap > 1e-9:
            return False, f"the statistics of two halves do not add up: off by {gap:.2g}"
    likelihoods = []
    for t in range(12):
        statistics, log_likelihood = expect(params, jax.random.fold_in(key, 1 + t), batch)
        likelihoods.append(float(log_likelihood.mean()))
        params = maximize(jax.tree.map(lambda s: s * 1e6, statistics))
    falls = -np.diff(likelihoods)
    detail = f"log-likelihood {likelihoods[0]:.4f} -> {likelihoods[-1]:.4f} nats in {len(falls)} steps"
    return bool(falls.max() < 1e-4), f"{detail}, worst fall {max(falls.max(), 0):.1g}"


def _cut(n: int) -> tuple[slice, slice]:
    return slice(0, n // 3), slice(n // 3, n)


def _distance(a: PyTree, b: PyTree) -> float:
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (a, b)), strict=True)
    return float(np.max([np.abs(x - y).max() / (1 + np.abs(x).max()) for x, y in pairs]))  # NaN if any is
