"""Checks of what a Model can do, one a capability, at an event small enough to be summed over."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dgm_jax.numerics import log_mean_exp
from dgm_jax.types import Array, Batch, Model, Params, PyTree
from dgm_jax.verification import keys
from dgm_jax.verification.bounds import EFFECTIVE, RARE, SIGMAS, importance
from dgm_jax.verification.space import (
    NotApplicable,
    Result,
    Space,
    is_enumerable,
    labelled,
    log_probs,
    measure,
    needs,
    perturbed,
    random_batch,
    samples,
    states,
)


def normalised(model: Model, space: Space, seed: int) -> Result:
    """exp(log_prob), or exp(-energy - log_partition), sums to one."""
    if model.log_prob is None:
        needs(model, "energy", "log_partition")
    params = perturbed(model, space, seed)
    over = measure(model, space, params, seed, 40_000)
    batch, log_z_error = labelled(space, over.x), 0.0
    if model.log_prob is not None:
        values = log_probs(model, space, params, over.x)
    else:
        assert model.energy is not None and model.log_partition is not None
        log_z, stderr = model.log_partition(params, jax.random.key(seed))
        log_z_error = float(stderr)
        values = -model.energy(params, None, batch) - log_z
    terms = np.exp(np.asarray(values + over.log_weight))
    total, error = terms.sum(), log_z_error
    if not over.exact:
        error = terms.std() * math.sqrt(len(terms))
        if error > 0.1 and total < 2:
            raise NotApplicable(f"the density is far from its samples: the estimate is {total:.2f} +- {error:.2f}")
    elif not space.values:
        dims = math.prod(space.shape)
        grid = terms.reshape((round(len(terms) ** (1 / dims)),) * dims)
        coarse = grid[(slice(None, None, 2),) * dims].sum() * 2**dims
        if abs(coarse - total) > 1e-2 * total:
            raise NotApplicable("the density is too sharp for a grid")
    exact = 1e-5 if space.values else 1e-3
    how = f"{len(terms)} {'states' if space.values else 'points'}"
    return abs(total - 1) <= exact + SIGMAS * error, f"sums to {total:.6f} (+- {error:.1g}) over {how}"


def causal(model: Model, space: Space, seed: int) -> Result:
    """Each conditional is one of its own variable given others that come before it in some order."""
    needs(model, "log_conditionals", "log_prob")
    assert model.log_prob is not None
    params, batch, table = _conditionals(model, space, seed)
    whole = jax.jit(lambda params, batch: model.log_prob(params, None, batch))(params, batch)
    dims = table.shape[-1]
    gap = float(np.abs(table.sum(-1).reshape(-1) - np.asarray(whole)).max())
    if gap > 1e-6:
        return False, f"the conditionals do not sum to log_prob: off by {gap:.2g} nats"
    index = np.arange(dims)
    own = np.exp(table[:, index, :, index]).sum(-1)  # [dims, n]
    blind = np.flatnonzero(np.abs(own - 1).max(1) > 1e-5)
    if len(blind):
        return False, f"p(x_d | ...) does not sum to 1 over x_d, which it may see: d = {_some(blind)}"
    reads = np.ptp(table, axis=2).max(0) > 1e-9  # [changed, conditional]
    np.fill_diagonal(reads, False)
    order, left = [], set(range(dims))
    while left:
        free = [d for d in sorted(left) if not any(reads[e, d] for e in left)]
        if not free:
            return False, f"no order: among the variables {_some(sorted(left))} each reads another of them"
        order += free
        left -= set(free)
    first = np.flatnonzero(~reads.any(0))
    if len(first) > 1:
        return False, f"{len(first)} variables read none before them: d = {_some(first)}; one may"
    return True, f"order {_some(order)}; {reads.sum()} of {dims * (dims - 1) // 2} dependencies"


def predicts(model: Model, space: Space, seed: int) -> Result:
    """What is predicted of each variable is the mean of its conditional."""
    needs(model, "predict", "log_conditionals")
    assert model.predict is not None
    params, batch, table = _conditionals(model, space, seed)
    index, shape = np.arange(table.shape[-1]), table.shape
    predicted = jax.jit(lambda params, batch: model.predict(params, None, batch))(params, batch)
    own = np.asarray(predicted).reshape(shape)[:, index, :, index]  # [dims, n, levels]
    mean = (np.exp(table[:, index, :, index]) * np.asarray(space.values)).sum(-1)
    gap = np.abs(own - mean[..., None]).max()
    return bool(gap < 1e-5), f"off the conditionals' means by {gap:.2g}"


@functools.lru_cache(maxsize=1)
def _conditionals(model: Model, space: Space, seed: int) -> tuple[Params, Batch, np.ndarray]:
    """log_conditionals of events whose variables were changed, one at a time, to each of their values.

    Returns:
        params, the batch of all these events, and their table [n, dims, levels, dims]: of which example, the variable
        that is changed, its new value, the conditional.

    Raises:
        NotApplicable: the events are not discrete.
    """
    if not space.values:
        raise NotApplicable("the events are not discrete")
    params = perturbed(model, space, seed)
    dims, levels, n = math.prod(space.shape), len(space.values), 24
    start = random_batch(space, seed, n)["x"].reshape(n, dims)
    index = np.arange(dims)
    x = np.broadcast_to(np.asarray(start)[:, None, None, :], (n, dims, levels, dims)).copy()
    x[:, index, :, index] = np.asarray(space.values)
    batch = labelled(space, jnp.asarray(x.reshape(-1, *space.shape)))
    values = jax.jit(lambda params, batch: model.log_conditionals(params, None, batch))(params, batch)
    return params, batch, np.asarray(values).reshape(n, dims, levels, dims)


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
    if stages.ndim != x.ndim + 1 or stages[:, 0].shape != x.shape or not _finite(stages):
        return False, f"stages {stages.shape} of samples {x.shape}, or not finite"
    last = np.asarray(stages[:, -1]).reshape(n, -1)
    rest = np.asarray(x).reshape(n, -1) - last
    terms = np.concatenate([rest, rest * (last - last.mean(0))], axis=1)  # both have the mean 0
    sigmas = (np.abs(terms.mean(0)) / (terms.std(0) / math.sqrt(n) + 1e-9)).max()
    detail = f"{stages.shape[1]} stages; the last is the mean of the samples within {sigmas:.1f} standard errors"
    return sigmas < SIGMAS + 0.5, detail


def completed(model: Model, space: Space, seed: int) -> Result:
    """What is observed stays; where nothing is, completions are samples."""
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
    return agrees(_which(space, x), distribution(model, space, seed)[1])


def coded(model: Model, space: Space, seed: int) -> Result:
    """encode gives finite codes, and decode makes events of them."""
    needs(model, "encode")
    params, batch = perturbed(model, space, seed), random_batch(space, seed, 6)
    encode, decode = model.encode, model.decode
    assert encode is not None
    codes = jax.jit(lambda params, batch: encode(params, None, batch))(params, batch)
    shapes = [code.shape for code in jax.tree.leaves(codes)]
    if not all(shape[0] == 6 for shape in shapes) or not _finite(codes):
        return False, f"codes of 6 events are not finite, or have the shapes {shapes}"
    if decode is None:
        return True, f"codes {shapes}"
    x = jax.jit(lambda params, codes, cond: decode(params, None, codes, cond))(params, codes, batch.get("cond"))
    return x.shape == batch["x"].shape and _finite(x), f"codes {shapes} -> {x.shape}"


def denoised(model: Model, space: Space, seed: int) -> Result:
    """The estimate of x_0 is finite at every noise level, like x, and depends on x_t and on t."""
    needs(model, "denoise")
    assert model.denoise is not None
    params, batch = perturbed(model, space, seed), random_batch(space, seed, 6)
    x, cond = batch["x"], batch.get("cond")
    denoise = jax.jit(lambda x, t: model.denoise(params, None, x, jnp.full(6, t), cond))
    outputs = [denoise(x, t) for t in (1e-3, 0.5, 1.0)]
    if not all(y.shape == x.shape and y.dtype == x.dtype and _finite(y) for y in outputs):
        return False, f"{[(y.shape, str(y.dtype)) for y in outputs]}, or not finite, for x {x.shape} {x.dtype}"
    depends = bool(jnp.any(outputs[1] != denoise(x + 0.1, 0.5))), bool(jnp.any(outputs[1] != denoise(x, 0.6)))
    return all(depends), "depends on x_t: {}, on t: {}".format(*depends)


def keys_used_once(model: Model, space: Space, seed: int) -> Result:
    """No function of the model uses a key twice."""
    params, key = perturbed(model, space, seed), jax.random.key(seed)
    batch = random_batch(space, seed, 4)
    x, cond = batch["x"], batch.get("cond")
    calls: dict[str, Callable[[Array], PyTree]] = {
        "init": lambda key: model.init(key, batch),
        "sample": lambda key: model.sample(params, key, 4, cond),
        "dream": lambda key: model.dream(params, key, 4, cond),
        "stages": lambda key: model.stages(params, key, 4, cond),
        "complete": lambda key: model.complete(params, key, {**batch, "observed": jnp.zeros_like(x)}),
        "gibbs": lambda key: model.gibbs(params, key, x),
        "denoise": lambda key: model.denoise(params, key, x, jnp.full(4, 0.5), cond),
    }
    for name in ("log_prob", "draw", "rate_distortion", "expect", "energy", "critic", "encode"):
        calls[name] = lambda key, name=name: getattr(model, name)(params, key, batch)
    calls["prior"] = lambda key: model.prior(params, key, 4, cond)
    calls["log_partition"] = lambda key: model.log_partition(params, key)
    if model.encode is not None:
        codes = model.encode(params, None, batch)
        calls["decode"] = lambda key: model.decode(params, key, codes, cond)
    count = 0
    for name, call in calls.items():
        if getattr(model, name) is not None:
            found = keys.uses(call, key)
            count += len(found)
            if problems := keys.reused(found):
                return False, f"{name}: {'; '.join(problems[:3])}"
    return True, f"{count} keys"


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
    if not _finite(x):
        return False, "not finite"
    has_probabilities = model.log_prob or model.energy or model.log_joint
    if has_probabilities and space.values and not np.isin(np.asarray(x), space.values).all():
        return False, f"values that an event cannot have, which are {space.values[:4]}"
    return None


def _finite(tree: PyTree) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def _some(items: object) -> str:
    listed = [str(int(item)) for item in items]  # type: ignore[attr-defined]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
