"""Checks of an objective: its gradient, that padding counts for nothing, and that EM ascends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.training.learners import overlay, trainable
from dgm_jax.types import Array, Batch, Counts, Key, Loss, Model, Params, PyTree
from dgm_jax.verification.space import (
    NotApplicable,
    Space,
    is_enumerable,
    labelled,
    log_probs,
    perturbed,
    random_batch,
    states,
)

Result = tuple[bool, str]
Objective = Loss | Mapping[str, Loss] | Counts
SIGMAS = 4.5  # a deviation that is no accident, in standard errors
DRAWS = 128  # keys over which a random gradient is averaged, at least
MOST = 32  # times as many, where it is noisy
GROUPS = 6  # of parameters, each tested along a direction of its own
STEP = 1e-5  # of the finite differences, in double precision
PATH = 0.2  # half the length of the paths along which discrete draws change
EXACT = 1e-4  # relative error of a gradient without noise


class Descent(NamedTuple):
    """One player's loss at some parameters."""

    name: str
    own: Params  # what it descends in
    join: Callable[[Params], Params]  # own -> the parameters of all
    loss: Loss
    carry: PyTree
    batch: Batch

    def value(self, own: Params, carry: PyTree, key: Key, batch: Batch) -> Array:
        """The loss as a function of what it descends in."""
        return self.loss.apply(self.join(own), carry, key, batch)[0]


def gradient_right(objective: Objective, model: Model, space: Space, seed: int) -> Result:
    """The mean gradient over keys is that of the mean loss, or of -log p.

    Finite differences with the same keys tell the gradient where the loss is smooth. Discrete draws make it jump,
    which a longer path shows: the mean gradient along it adds up to the difference of the loss at its ends. A
    loss whose value has no meaning, such as contrastive divergence, is held against -log p by enumeration
    instead. An estimator that is biased by design (STL with k > 1, straight-through) fails; the detail says by
    how much.
    """
    if isinstance(objective, Counts):
        raise NotApplicable("EM follows no gradient")
    results = []
    for descent in _descents(objective, model, space, seed):
        ok, detail = _by_differences(descent, None if descent.name else model.log_prob, seed)
        if ok:
            ok, along = _along_paths(descent, seed)
            detail = f"{detail}; {along}" if ok else along
        if not ok and model.energy is not None and is_enumerable(space):
            ok, enumerated = _by_enumeration(descent, model, space, seed)
            detail = enumerated if ok else f"{detail}; {enumerated}"
        results.append((ok, f"{descent.name}: {detail}" if descent.name else detail))
    return all(ok for ok, _ in results), "; ".join(detail for _, detail in results)


def padding_ignored(objective: Objective, model: Model, space: Space, seed: int) -> Result:
    """What a masked example holds changes neither loss nor gradient, nor the statistics of EM."""
    key, kept = jax.random.key(seed), 6
    batch, other = (jax.tree.map(np.asarray, random_batch(space, seed + i, 8)) for i in (0, 1))
    padded = jax.tree.map(lambda a, b: np.concatenate([a[:kept], b[kept:]]), batch, other)
    mask = (np.arange(8) < kept).astype(float)
    batches = [jax.tree.map(jnp.asarray, one | {"mask": mask}) for one in (batch, padded)]
    if isinstance(objective, Counts):
        params, expect = perturbed(model, space, seed), jax.jit(objective.expect)
        results = [expect(params, key, one) for one in batches]
        outputs: list[PyTree] = [(statistics, likelihood[:kept]) for statistics, likelihood in results]
    else:
        descents = list(_descents(objective, model, space, seed))
        outputs = [[_value_and_grad(descent, key, one) for descent in descents] for one in batches]
    gap = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0))
        for a, b in zip(jax.tree.leaves(outputs[0]), jax.tree.leaves(outputs[1]), strict=True)
    )
    return gap <= 1e-9, f"largest change {gap:.1g}"


def _value_and_grad(descent: Descent, key: Key, batch: Batch) -> tuple[Array, Params]:
    f = jax.jit(jax.value_and_grad(descent.value))
    return f(descent.own, descent.carry, key, batch)


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
    return max(float(np.abs(x - y).max() / (1 + np.abs(x).max())) for x, y in pairs)


def _descents(objective: Loss | Mapping[str, Loss], model: Model, space: Space, seed: int) -> Iterator[Descent]:
    """Each loss of an objective, away from the initial parameters."""
    params, batch, key = perturbed(model, space, seed), random_batch(space, seed + 1, 8), jax.random.key(seed)
    if isinstance(objective, Loss):
        carry = objective.init(params, key, batch)
        yield Descent("", trainable(params), lambda own: overlay(params, own), objective, carry, batch)
        return
    for name, loss in objective.items():

        def join(own: Params, name: str = name) -> Params:
            return {**params, name: overlay(params[name], own)}

        yield Descent(name, trainable(params[name]), join, loss, loss.init(params, key, batch), batch)


def _directions(own: Params, seed: int) -> Params:
    """Random directions of unit length, stacked, each in a group of the parameters: no leaf is drowned."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(own)
    groups = min(GROUPS, len(leaves))
    stacked = [np.zeros((groups, *leaf.shape)) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        stacked[i][i % groups] = rng.normal(size=leaf.shape)
    lengths = np.sqrt(sum((d**2).reshape(groups, -1).sum(1) for d in stacked))
    unit = [jnp.asarray(d / lengths.reshape(-1, *[1] * (d.ndim - 1))) for d in stacked]
    return jax.tree.unflatten(tree, unit)


def _dot(a: PyTree, b: PyTree) -> Array:
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _mean_and_error(values: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the leading axis, and its standard error."""
    values = np.asarray(values)
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def _by_differences(descent: Descent, log_prob: Callable[..., Array] | None, seed: int) -> Result:
    """Against central differences with the same keys; not away from the gradient of -log_prob."""

    def nll(own: Params) -> Array:
        return -jnp.mean(log_prob(descent.join(own), None, descent.batch)) if log_prob else jnp.zeros(())

    @jax.jit
    def compare(own: Params, directions: Params, keys: Key) -> tuple[Array, Array, Array]:
        truth = jax.grad(nll)(own)

        def one(key: Key) -> tuple[Array, Array, Array]:
            def value(own: Params) -> Array:
                return descent.value(own, descent.carry, key, descent.batch)

            def along(v: Params) -> tuple[Array, Array]:
                high, low = (value(jax.tree.map(lambda p, d: p + h * d, own, v)) for h in (STEP, -STEP))
                return _dot(grads, v), (high - low) / (2 * STEP)

            grads = jax.grad(value)(own)
            return *jax.lax.map(along, directions), _dot(grads, truth)

        return jax.lax.map(one, keys)

    keys = jax.random.split(jax.random.key(seed), DRAWS)
    claimed, measured, slope = compare(descent.own, _directions(descent.own, seed), keys)
    scale = max(math.sqrt(jnp.mean(measured**2)), 1e-8)
    gap, error = _mean_and_error(claimed - measured)
    wrong = np.abs(gap) > np.maximum(SIGMAS * error, EXACT * scale)
    worst = int(np.argmax(np.abs(gap) * wrong if wrong.any() else np.abs(gap)))
    if wrong.any():
        return False, (
            f"not that of the loss: {claimed[:, worst].mean():.4g} instead of {measured[:, worst].mean():.4g}"
            f" +- {error[worst]:.1g} along a direction; biased by design?"
        )
    mean, slope_error = _mean_and_error(slope)
    if mean < -SIGMAS * slope_error:
        return False, f"descends away from log p: slope {mean:.4g} +- {slope_error:.1g} along its gradient"
    return True, f"that of the loss to {abs(gap[worst]) / scale:.1g} +- {error[worst] / scale:.1g}, relative"


def _along_paths(descent: Descent, seed: int) -> Result:
    """The mean slope along a path against the mean difference of the loss at its ends, with the same keys."""

    @jax.jit
    def compare(own: Params, directions: Params, keys: Key) -> Array:
        def one(given: tuple[Key, Array]) -> Array:
            key, place = given

            def value(own: Params) -> Array:
                return descent.value(own, descent.carry, key, descent.batch)

            def along(v: Params) -> Array:
                def at(h: Array | float) -> Params:
                    return jax.tree.map(lambda p, d: p + h * d, own, v)

                slopes = [_dot(jax.grad(value)(at(h)), v) for h in (place, -place)]
                return jnp.stack([sum(slopes) / 2, (value(at(PATH)) - value(at(-PATH))) / (2 * PATH)])

            return jax.lax.map(along, directions)

        # places spread evenly, so that they add no noise to speak of
        return jax.lax.map(one, (keys, PATH * (jnp.arange(len(keys)) + 0.5) / len(keys)))

    # two directions through all parameters
    every = _directions(descent.own, seed)
    directions = jax.tree.map(lambda d: jnp.stack([d.sum(0), d[::2].sum(0) - d[1::2].sum(0)]), every)
    n = DRAWS
    while True:
        found = np.asarray(compare(descent.own, directions, jax.random.split(jax.random.key(seed + n), n)))
        gap, error = _mean_and_error(found[:, :, 0] - found[:, :, 1])
        scale = max(math.sqrt((found[:, :, 1].mean(0) ** 2).mean()), 1e-8)
        if (error < 0.03 * scale).all() or n >= DRAWS * MOST:
            break
        n *= 4
    worst = int(np.argmax(np.abs(gap) / np.maximum(SIGMAS * error, 1e-3 * scale)))
    ok = bool(abs(gap[worst]) <= max(SIGMAS * error[worst], 1e-3 * scale))
    numbers = f"off by {gap[worst] / scale:.2g} +- {error[worst] / scale:.1g} over {n} keys"
    return ok, f"along a path {numbers}" if ok else f"along a path not that of the loss: {numbers}; biased by design?"


def _by_enumeration(descent: Descent, model: Model, space: Space, seed: int) -> Result:
    """Against -log p, when the chains, or where there are none the data, are exact samples of the model.

    With data of another distribution it must not point away from that of -log p.
    """
    assert model.energy is not None
    energy, x = model.energy, states(space)
    carry, data = descent.carry, descent.batch
    persistent = isinstance(carry, Mapping) and "chains" in carry
    count = len(carry["chains"] if persistent else data["x"])
    log_p = jax.nn.log_softmax(log_probs(model, space, descent.join(descent.own), x))

    def log_partition(own: Params) -> Array:
        return jax.nn.logsumexp(-energy(descent.join(own), None, labelled(space, x)))

    def data_energy(own: Params, batch: Batch) -> Array:
        return jnp.mean(energy(descent.join(own), None, batch))

    @jax.jit
    def compare(own: Params, directions: Params, keys: Key) -> tuple[Array, Array, Array]:
        of_log_z = jax.grad(log_partition)(own)

        def one(key: Key) -> tuple[Array, Array, Array]:
            choice_key, key, other_key = jax.random.split(key, 3)
            exact = x[jax.random.categorical(choice_key, log_p, shape=(count,))]
            chains = {**carry, "chains": exact} if persistent else carry
            batch = data if persistent else {**data, "x": exact}
            grads = jax.grad(descent.value)(own, chains, key, batch)
            truth = jax.tree.map(jnp.add, jax.grad(data_energy)(own, batch), of_log_z)
            far = jax.grad(descent.value)(own, carry, other_key, data)
            uphill = jax.tree.map(jnp.add, jax.grad(data_energy)(own, data), of_log_z)
            pairs = jax.vmap(lambda v: (_dot(grads, v), _dot(truth, v)))(directions)
            return *pairs, _dot(far, uphill)

        return jax.lax.map(one, keys)

    keys = jax.random.split(jax.random.key(seed), 16 * DRAWS)
    claimed, truth, slope = compare(descent.own, _directions(descent.own, seed), keys)
    gap, error = _mean_and_error(claimed - truth)
    sigmas, what = np.abs(gap) / (error + 1e-12), "chains" if persistent else "data"
    worst = int(np.argmax(sigmas))
    if sigmas[worst] > SIGMAS:
        return False, (
            f"with exact samples for {what} not that of -log p: {claimed[:, worst].mean():.4g} instead of"
            f" {truth[:, worst].mean():.4g} +- {error[worst]:.1g} along a direction"
        )
    mean, slope_error = _mean_and_error(slope)
    if mean < SIGMAS * slope_error:
        return False, f"does not descend -log p: slope {mean:.4g} +- {slope_error:.1g} along its gradient"
    return True, f"with exact samples for {what} that of -log p, within {sigmas[worst]:.1f} standard errors"
