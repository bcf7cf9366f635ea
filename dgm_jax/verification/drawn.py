"""Checks of what a Model draws: its samples, completions, chains and stages, against its own probabilities."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dgm_jax.numerics import log_mean_exp
from dgm_jax.types import Array, Model, Params
from dgm_jax.verification.bounds import EFFECTIVE, RARE, SIGMAS, importance
from dgm_jax.verification.capabilities import conditionals, is_finite, order_of, reads_of
from dgm_jax.verification.space import (
    NotApplicable,
    Result,
    Space,
    is_enumerable,
    labelled,
    log_probs,
    needs,
    perturbed,
    random_batch,
    samples,
    states,
)


def gibbs_invariant(model: Model, space: Space, seed: int) -> Result:
    """A sweep from exact samples gives exact samples, and moves."""
    needs(model, "gibbs")
    assert model.gibbs is not None
    params = perturbed(model, space, seed)
    x, p = distribution(model, space, seed)
    chosen = np.random.default_rng(seed).choice(len(p), 20_000, p=p)
    moved = _which(space, jax.jit(model.gibbs)(params, jax.random.key(seed), x[chosen]))
    share = np.mean(moved != chosen)
    likely, detail = agrees(moved, p)
    return likely and bool(share > 0), f"{detail}; {share:.0%} of the chains moved"


def sampled(model: Model, space: Space, seed: int) -> Result:
    """Samples have the right form, and the distribution that the model's probabilities say."""
    needs(model, "sample")
    key = jax.random.key(seed)
    likelihood = model.draw is not None and model.log_joint is not None and is_enumerable(space)
    if likelihood and not (found := importance(model, space, seed)).point:
        if found.effective < EFFECTIVE:
            raise NotApplicable(f"the weights that tell probabilities are too spread ({found.effective:.1%} effective)")
        params, log_w = found.params, found.log_w
        p = np.asarray(jnp.exp(log_mean_exp(log_w, axis=0)))
        variance = np.exp(np.asarray(log_w)).var(0) / len(log_w)
        x = samples(model, space, params, key, 5000)
        return _formed(model, space, x) or agrees(_which(space, x), p, variance)
    params = perturbed(model, space, seed)
    by_states = is_enumerable(space) and (model.log_prob is not None or model.energy is not None)
    by_density = model.log_prob is not None and not space.values
    judged = (by_states or by_density) and model.gibbs is None
    x = samples(model, space, params, key, 5000 if judged else 50)
    if (problem := _formed(model, space, x)) is not None:
        return problem
    if model.gibbs is not None:
        return True, "form; drawn by a chain, whose sweep another check judges"
    if by_states:
        return agrees(_which(space, x), distribution(model, space, seed)[1])
    return _stein(model, space, params, x) if by_density else (True, "form")


def staged(model: Model, space: Space, seed: int) -> Result:
    """The last stage of a sample is the sample of the same key, or the mean that it is drawn around."""
    needs(model, "stages", "sample")
    assert model.stages is not None
    n, key, params = 500, jax.random.key(seed), perturbed(model, space, seed)
    x = samples(model, space, params, key, n)
    cond = labelled(space, jnp.zeros((n, 1))).get("cond")
    stages = jax.jit(model.stages, static_argnums=2)(params, key, n, cond)
    if stages.ndim != x.ndim + 1 or stages[:, 0].shape != x.shape or not is_finite(stages):
        return False, f"stages {stages.shape} of samples {x.shape}, or not finite"
    last = np.asarray(stages[:, -1]).reshape(n, -1)
    rest = np.asarray(x).reshape(n, -1) - last
    terms = np.concatenate([rest, rest * (last - last.mean(0))], axis=1)  # both have the mean 0
    sigmas = (np.abs(terms.mean(0)) / (terms.std(0) / math.sqrt(n) + 1e-9)).max()
    detail = f"{stages.shape[1]} stages; the last is the mean of the samples within {sigmas:.1f} standard errors"
    return sigmas < SIGMAS + 0.5, detail


def completed(model: Model, space: Space, seed: int) -> Result:
    """What is observed stays; where nothing is, completions are samples, and else of p(hidden | observed).

    The latter is asked of one chain with the first half of its order observed, and of models with exact marginals.
    """
    needs(model, "complete")
    assert model.complete is not None
    params = perturbed(model, space, seed)
    key, complete = jax.random.key(seed), jax.jit(model.complete)
    judged = is_enumerable(space) and model.gibbs is None and bool(model.log_prob or model.energy)
    batch = random_batch(space, seed, 5000 if judged else 16)  # of one size, compiled once
    half = np.random.default_rng(seed).random(batch["x"].shape) < 0.5
    for observed in (half, np.ones_like(half)):
        x = complete(params, key, {**batch, "observed": jnp.asarray(observed, batch["x"].dtype)})
        if (problem := _formed(model, space, x)) is not None:
            return problem
        if not bool(jnp.all(jnp.where(observed, x == batch["x"], True))):
            return False, "what is observed is changed"
    if not judged:
        return True, "form; what is observed stays"
    nothing = jnp.zeros_like(batch["x"])
    x = complete(params, key, labelled(space, nothing) | {"observed": nothing})
    events, p = distribution(model, space, seed)
    likely, detail = agrees(_which(space, x), p)
    first = np.zeros(math.prod(space.shape), bool)
    if model.log_conditionals is not None:
        order, _ = order_of(reads_of(conditionals(model, space, seed)[2]))
        first[order[: len(first) // 2]] = True
    elif model.log_prob is not None and model.observed:
        first = half[0].reshape(-1)
    if not likely or not first.any():
        return likely, detail
    flat, given = np.asarray(events).reshape(len(p), -1), np.asarray(batch["x"][0]).reshape(-1)
    p = np.where((flat == given)[:, first].all(1), p, 0)
    one = jnp.broadcast_to(batch["x"][:1], batch["x"].shape)
    seen = jnp.broadcast_to(jnp.asarray(first, one.dtype).reshape(space.shape), one.shape)
    x = complete(params, jax.random.fold_in(key, 1), labelled(space, one) | {"observed": seen})
    likely, given_detail = agrees(_which(space, x), p / p.sum())
    return likely, f"{detail}; given {first.sum()} values {given_detail}"


@functools.lru_cache(maxsize=2)
def distribution(model: Model, space: Space, seed: int) -> tuple[Array, np.ndarray]:
    """All events [S, *shape] and their probabilities [S] under `perturbed` parameters."""
    if not is_enumerable(space):
        raise NotApplicable("the events cannot be listed")
    x = states(space)
    p = np.exp(np.asarray(log_probs(model, space, perturbed(model, space, seed), x)))
    return x, p / p.sum()


def agrees(index: np.ndarray, p: np.ndarray, variance: np.ndarray | float = 0.0) -> Result:
    """Pearson's test that draws, given by their state's number, have the probabilities p [S].

    Rare states are pooled; `variance` [S] is that of an estimated p.
    """
    n = len(index)
    if impossible := int((p[index] == 0).sum()):
        return False, f"{impossible} of {n} draws have the probability 0"
    pool = _pools(n * p)
    expected = np.bincount(pool, n * p)
    observed = np.bincount(pool[index], minlength=len(expected))
    spread = expected + n**2 * np.bincount(pool, np.broadcast_to(variance, p.shape))
    statistic = ((observed - expected) ** 2 / spread).sum()
    chance = stats.chi2.sf(statistic, max(len(expected) - 1, 1))
    return chance > RARE, f"chi-square {statistic:.1f} in {len(expected)} cells, p = {chance:.2g}, {n} draws"


def _pools(expected: np.ndarray, least: float = 5.0) -> np.ndarray:
    """The number of each state's pool, [S]: from the rarest on, as many as are expected `least` times together."""
    pool, number, total = np.empty(len(expected), int), 0, 0.0
    for state in np.argsort(expected):
        pool[state], total = number, total + expected[state]
        if total >= least:
            number, total = number + 1, 0.0
    return np.minimum(pool, max(number - 1, 0))  # what is left over goes to the last


def _which(space: Space, x: Array) -> np.ndarray:
    """The number of each event among `states`, [N]."""
    digits = np.abs(np.asarray(x).reshape(len(x), -1, 1) - np.asarray(space.values)).argmin(-1)
    return digits @ len(space.values) ** np.arange(digits.shape[1])[::-1]


def _stein(model: Model, space: Space, params: Params, x: Array) -> Result:
    """E[d log p / dx_d] = 0 and E[x_d d log p / dx_d] = -1 hold under p, and not under another density."""
    assert model.log_prob is not None
    log_prob = model.log_prob
    centred = x - x.mean(0, keepdims=True)
    score = jax.jit(jax.grad(lambda x: log_prob(params, None, labelled(space, x)).sum()))(x)
    terms = np.concatenate([score.reshape(len(x), -1), (centred * score + 1).reshape(len(x), -1)], axis=1)
    sigmas = np.abs(terms.mean(0)) / (terms.std(0) / math.sqrt(len(x)) + 1e-12)
    return sigmas.max() < SIGMAS + 0.5, f"Stein's identity within {sigmas.max():.1f} standard errors, {len(x)} draws"


def _formed(model: Model, space: Space, x: Array) -> Result | None:
    """What is wrong with the form of samples; None where nothing is."""
    if x.shape[1:] != space.shape or not jnp.issubdtype(x.dtype, jnp.floating):
        return False, f"shape {x.shape}, {x.dtype}: not that of events {space.shape}"
    if not is_finite(x):
        return False, "not finite"
    has_probabilities = model.log_prob or model.energy or model.log_joint
    if has_probabilities and space.values and not np.isin(np.asarray(x), space.values).all():
        return False, f"values that an event cannot have, which are {space.values[:4]}"
    return None
