"""Whether an objective's gradient is right, held against differences of the loss and against enumeration.

Everything is measured through one compiled function of a loss: its values and slopes for a few keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.training.compilation import jit_once
from dgm_jax.training.learners import overlay, trainable
from dgm_jax.types import Array, Batch, Counts, Key, Loss, Model, Params, PyTree
from dgm_jax.verification import latents
from dgm_jax.verification.averages import FEW, average
from dgm_jax.verification.bounds import SIGMAS
from dgm_jax.verification.space import (
    NotApplicable,
    Result,
    Space,
    is_enumerable,
    labelled,
    log_probs,
    perturbed,
    random_batch,
    states,
)

Objective = Loss | Mapping[str, Loss] | Counts
KEYS, JUMPY_KEYS = 2, 64  # at a time: at a point, and along a path of a loss with discrete draws
SAMPLES = 256  # of an enumerated distribution, for each of the times that are averaged over
GROUPS = 4  # of parameters, each tested along a direction of its own
STEP = 1e-5  # of the finite differences, in double precision
PATH, JUMPY_PATH = 0.1, 0.5  # half the length of the paths: to find jumps, and to average them out
EXACT, LONG = 1e-4, 0.02  # relative error of a gradient without noise, at a point and along a path
NEAR = 0.5  # the same of one whose bias falls with the number of draws


class Descent(NamedTuple):
    """One player's loss at some parameters."""

    name: str
    own: Params  # what it descends in
    join: Callable[[Params], Params]  # own -> the parameters of all
    carry: PyTree
    batch: Batch
    directions: Params  # of unit length in own, stacked
    # (own, carry, keys, batch, directions) -> (values [KEYS], slopes along the directions [KEYS, GROUPS])
    measure: Callable[[Params, PyTree, Key, Batch, Params], tuple[Array, Array]]


Descents = Callable[[], list[Descent]]


def descents(objective: Objective, model: Model, space: Space, seed: int) -> list[Descent]:
    """Each loss of an objective, away from the initial parameters.

    Raises:
        NotApplicable: it has none.
    """
    if isinstance(objective, Counts):
        raise NotApplicable("EM follows no gradient")
    params, key = perturbed(model, space, seed), jax.random.key(seed)
    batch = random_batch(space, seed + 1, 8) | {"mask": jnp.ones(8)}
    losses = {"": objective} if isinstance(objective, Loss) else objective
    found = []
    for name, loss in losses.items():

        def join(own: Params, name: str = name) -> Params:
            return {**params, name: overlay(params[name], own)} if name else overlay(params, own)

        own = trainable(params[name] if name else params)
        carry = jit_once(loss.init)(params, key, batch)
        found.append(Descent(name, own, join, carry, batch, _directions(own, seed), jax.jit(_measure(loss, join))))
    return found


def gradient_right(each: Descents, model: Model, space: Space, seed: int) -> Result:
    """The mean gradient over keys is that of the mean loss, or of -log p.

    Where a loss is smooth, finite differences with the same keys tell its gradient. Where discrete draws make it
    jump, a longer path does: the mean slope along it is the mean difference of the loss at its ends. A loss whose
    value has no meaning, such as contrastive divergence, is held against -log p by enumeration instead. A loss
    whose gradient is its own only in the parameters that log p(x, z) reads, as in wake-sleep, is held in the others
    against KL(p(z | x) | q(z | x)), which wake-sleep lowers. An estimator that is biased by design (STL with k > 1,
    straight-through) fails; the detail says by how much.
    """
    results = []
    for descent in each():
        ok, detail = _by_differences(descent, seed)
        if _jumps(descent, seed):
            ok, detail = _along_paths(descent, seed)
        if not ok and model.energy is not None and is_enumerable(space):
            ok, enumerated = _by_enumeration(descent, model, space, seed)
            detail = enumerated if ok else f"{detail}; {enumerated}"
        elif not ok and model.log_posterior is not None and not descent.name:
            ok, listed = _by_latents(descent, model, space, seed)
            detail = listed if ok else f"{detail}; {listed}"
        elif ok and model.log_prob is not None and not descent.name:
            log_prob, batch = model.log_prob, descent.batch

            def nll(own: Params) -> Array:
                return -jnp.mean(log_prob(descent.join(own), None, batch))

            ok, against = _not_uphill(descent, nll, seed)
            detail = f"{detail}; {against}"
        results.append((ok, f"{descent.name}: {detail}" if descent.name else detail))
    return all(ok for ok, _ in results), "; ".join(detail for _, detail in results)


def _measure(loss: Loss, join: Callable[[Params], Params]) -> Callable:
    def measure(own: Params, carry: PyTree, keys: Key, batch: Batch, directions: Params) -> tuple[Array, Array]:
        def one(key: Key) -> tuple[Array, Array]:
            value, grads = jax.value_and_grad(lambda own: loss.apply(join(own), carry, key, batch)[0])(own)
            return value, jax.vmap(lambda v: _dot(grads, v))(directions)

        return jax.lax.map(one, keys)

    return measure


def _directions(own: Params, seed: int) -> Params:
    """Random directions of unit length, stacked, each in a group of the parameters: no leaf is drowned."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(own)
    stacked = [np.zeros((GROUPS, *leaf.shape)) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        stacked[i][i % GROUPS] = rng.normal(size=leaf.shape)
    lengths = np.sqrt(sum((d**2).reshape(GROUPS, -1).sum(1) for d in stacked)) + 1e-300
    unit = [d / lengths.reshape(-1, *[1] * (d.ndim - 1)) for d in stacked]
    return jax.tree.unflatten(tree, unit)


def _dot(a: PyTree, b: PyTree) -> Array:
    return jnp.stack([jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]).sum()


def _moved(own: Params, direction: Params, by: float) -> Params:
    return jax.tree.map(lambda p, d: np.asarray(p) + by * np.asarray(d), own, direction)  # numpy compiles nothing


def _by_differences(descent: Descent, seed: int) -> Result:
    own, carry, batch, directions = descent.own, descent.carry, descent.batch, descent.directions
    singles = [jax.tree.map(lambda d, i=i: np.asarray(d)[i], directions) for i in range(GROUPS)]

    def pair(keys: Key, _: int) -> tuple[Array, Array]:
        def value(at: Params) -> np.ndarray:
            return np.asarray(descent.measure(at, carry, keys, batch, directions)[0])

        slopes = [(value(_moved(own, v, STEP)) - value(_moved(own, v, -STEP))) / (2 * STEP) for v in singles]
        claimed = np.asarray(descent.measure(own, carry, keys, batch, directions)[1])
        return claimed.mean(0), np.stack(slopes).mean(1)

    found = average(pair, seed, 2, EXACT, KEYS)
    worst = int(np.argmax(found.off(EXACT)))
    if not found.equal(EXACT):
        return False, (
            f"not that of the loss: {found.claimed[worst]:.4g} instead of {found.measured[worst]:.4g}"
            f" +- {found.error[worst]:.1g} along a direction; biased by design?"
        )
    return True, f"that of the loss to {np.abs(found.gap).max() / found.scale:.1g}, relative"


def _along_paths(descent: Descent, seed: int) -> Result:
    own, carry, batch = descent.own, descent.carry, descent.batch
    direction, repeated = _one_direction(descent)

    def pair(keys: Key, chunk: int) -> tuple[Array, Array]:
        place = JUMPY_PATH * ((chunk * 0.618 + 0.5) % 1)  # spread evenly over the path, whatever their number
        places = (place, -place, JUMPY_PATH, -JUMPY_PATH)
        at = {h: descent.measure(_moved(own, direction, h), carry, keys, batch, repeated) for h in places}
        slope = (at[place][1] + at[-place][1])[:, :1] / 2
        return slope.mean(0), (at[JUMPY_PATH][0] - at[-JUMPY_PATH][0]).mean(0)[None] / (2 * JUMPY_PATH)

    found = average(pair, seed, 8, LONG, JUMPY_KEYS)
    ok = found.equal(LONG)
    detail = f"along a path off by {found.gap[0] / found.scale:.2g} +- {found.error[0] / found.scale:.1g}"
    return ok, detail if ok else f"discrete draws have no part in it: {detail}; biased by design?"


def _jumps(descent: Descent, seed: int) -> bool:
    """Whether the loss with a fixed key jumps, so that its slopes do not add up along a path."""
    direction, repeated = _one_direction(descent)
    for chunk in range(8):
        keys = jax.random.split(jax.random.key(seed + chunk), KEYS)

        def value(h: float) -> np.ndarray:
            at = _moved(descent.own, direction, h)
            return np.asarray(descent.measure(at, descent.carry, keys, descent.batch, repeated)[0])

        places = np.linspace(-PATH, PATH, 9)
        slopes = np.stack([(value(h + STEP) - value(h - STEP)) / (2 * STEP) for h in places])
        simpson = np.array([1, 4, 2, 4, 2, 4, 2, 4, 1]) @ slopes / 24
        mean = (value(PATH) - value(-PATH)) / (2 * PATH)
        if (np.abs(mean - simpson) > 0.5 * np.abs(slopes).max()).any():
            return True
    return False


def _one_direction(descent: Descent) -> tuple[Params, Params]:
    """One direction through all parameters, and as many copies as `measure` takes."""
    direction = jax.tree.map(lambda d: np.asarray(d).sum(0), descent.directions)
    return direction, jax.tree.map(lambda d: np.broadcast_to(d[None], (GROUPS, *d.shape)), direction)


def _not_uphill(descent: Descent, nll: Callable[[Params], Array], seed: int) -> Result:
    """The mean gradient does not point away from that of nll(own), the true one."""
    truth = jax.jit(jax.grad(nll))(descent.own)
    repeated = jax.tree.map(lambda d: jnp.broadcast_to(d[None], (GROUPS, *d.shape)), truth)
    slopes = []
    for chunk in range(FEW):
        keys = jax.random.split(jax.random.key(seed + chunk), KEYS)
        slopes.append(descent.measure(descent.own, descent.carry, keys, descent.batch, repeated)[1][:, 0].mean())
    error = np.std(slopes) / math.sqrt(FEW)
    mean = float(np.mean(slopes))
    return bool(mean > -SIGMAS * error), f"slope {mean:.3g} +- {error:.1g} along that of -log p"


def _by_enumeration(descent: Descent, model: Model, space: Space, seed: int) -> Result:
    """Against -log p, when the chains, or where there are none the data, are exact samples of the model.

    With data of another distribution it must not point away from that of -log p.
    """
    assert model.energy is not None
    energy, x, own, carry = model.energy, states(space), descent.own, descent.carry
    persistent = isinstance(carry, Mapping) and "chains" in carry
    p = np.exp(np.asarray(log_probs(model, space, descent.join(own), x)))

    def nll(own: Params, batch: Batch) -> Array:
        joined = descent.join(own)
        log_z = jax.nn.logsumexp(-energy(joined, None, labelled(space, x)))
        return jnp.mean(energy(joined, None, batch)) + log_z

    @jax.jit
    def slopes(own: Params, batch: Batch) -> Array:
        grads = jax.grad(nll)(own, batch)
        return jax.vmap(lambda v: _dot(grads, v))(descent.directions)

    def pair(keys: Key, chunk: int) -> tuple[Array, Array]:
        exact = x[np.random.default_rng([seed, chunk]).choice(len(p), SAMPLES, p=p / p.sum())]
        chains = {**carry, "chains": exact} if persistent else carry
        batch = descent.batch if persistent else labelled(space, exact) | {"mask": jnp.ones(SAMPLES)}
        claimed = descent.measure(own, chains, keys, batch, descent.directions)[1]
        return claimed.mean(0), slopes(own, batch)

    scale = math.sqrt(float(jnp.mean(slopes(own, descent.batch) ** 2)))
    found = average(pair, seed, FEW, EXACT, KEYS, scale)
    what, worst = "chains" if persistent else "data", int(np.argmax(found.off(EXACT)))
    if not found.equal(EXACT):
        return False, (
            f"with exact samples for {what} not that of -log p: {found.claimed[worst]:.4g} instead of"
            f" {found.measured[worst]:.4g} +- {found.error[worst]:.1g} along a direction"
        )
    ok, against = _not_uphill(descent, lambda own: nll(own, descent.batch), seed)
    sigmas = (np.abs(found.gap) / (found.error + 1e-300)).max()
    return ok, f"with exact samples for {what} that of -log p, within {sigmas:.1f} standard errors; {against}"


def _by_latents(descent: Descent, model: Model, space: Space, seed: int) -> Result:
    """That of the loss in what log p(x, z) reads, and in the rest near that of KL(p(z | x) | q(z | x)).

    The divergence is on average over the data ("inclusive"), over the model's own events ("dreamt"), or the sum of the
    two. Nearer to that of KL(q(z | x) | p(z | x)) it is a biased gradient of the bound.
    """
    own, carry, batch = descent.own, descent.carry, descent.batch
    held = descent.join(own)
    try:
        values = latents.listed(model, held, batch)
    except NotApplicable as why:
        return False, str(why)
    reads = jax.jit(jax.grad(lambda own: latents.log_joints(model, descent.join(own), values, batch).sum()))(own)
    in_p = jax.tree.map(lambda g: bool(np.any(np.asarray(g) != 0)), reads)
    of_p = jax.tree.map(lambda d, p: np.asarray(d) * p, descent.directions, in_p)
    ok, detail = _by_differences(descent._replace(directions=of_p), seed)
    if not ok:
        return False, f"in what log p(x, z) reads {detail}"

    rng = np.random.default_rng(seed)
    of_q = jax.tree.map(lambda d, p: rng.normal(size=np.shape(d)) * (not p), descent.directions, in_p)

    def divergences(own: Params) -> dict[str, Array]:
        return latents.divergences(model, space, descent.join(own), held, values, batch)

    @jax.jit
    def slopes(own: Params) -> dict[str, Array]:
        return jax.vmap(lambda v: jax.jvp(divergences, (own,), (v,))[1])(of_q)

    truths = {name: np.asarray(slope) for name, slope in slopes(own).items()}
    if "dreamt" in truths:
        truths["inclusive and dreamt"] = truths["inclusive"] + truths["dreamt"]

    def pair(keys: Key, _: int) -> tuple[Array, Array]:
        return descent.measure(own, carry, keys, batch, of_q)[1].mean(0), jnp.asarray(truths["inclusive"])

    claimed = average(pair, seed, FEW, EXACT, JUMPY_KEYS).claimed
    gaps = {name: np.linalg.norm(claimed - truth) / np.linalg.norm(truth) for name, truth in truths.items()}
    nearest = min(gaps, key=lambda name: gaps[name])
    return bool(gaps[nearest] < NEAR) and nearest != "exclusive", (
        f"in what log p(x, z) reads {detail}; in the rest off by {gaps[nearest]:.2g}, relative, that of the divergence"
        f" of q, {nearest}"
    )
