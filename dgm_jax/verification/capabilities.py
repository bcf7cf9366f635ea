"""Checks of what a Model can do, one a capability, at an event small enough to be summed over."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.types import Array, Batch, Model, Params, PyTree
from dgm_jax.verification import keys
from dgm_jax.verification.bounds import SIGMAS
from dgm_jax.verification.space import (
    NotApplicable,
    Result,
    Space,
    labelled,
    log_probs,
    measure,
    needs,
    perturbed,
    random_batch,
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
    elif not space.values:
        dims = math.prod(space.shape)
        grid = terms.reshape((round(len(terms) ** (1 / dims)),) * dims)
        coarse = grid[(slice(None, None, 2),) * dims].sum() * 2**dims
        if abs(coarse - total) > 1e-2 * total:
            raise NotApplicable("the density is too sharp for a grid")
    if error > 0.1 and abs(total - 1) <= SIGMAS * error:
        raise NotApplicable(f"the estimate is too rough to tell: {total:.2f} +- {error:.2f}")
    exact = 1e-5 if space.values else 1e-3
    how = f"{len(terms)} {'states' if space.values else 'points'}"
    return abs(total - 1) <= exact + SIGMAS * error, f"sums to {total:.6f} (+- {error:.1g}) over {how}"


def causal(model: Model, space: Space, seed: int) -> Result:
    """Each conditional is one of its own variable given others that come before it in some order."""
    needs(model, "log_conditionals", "log_prob")
    assert model.log_prob is not None
    params, batch, table = conditionals(model, space, seed)
    whole = jax.jit(lambda params, batch: model.log_prob(params, None, batch))(params, batch)
    dims = table.shape[-1]
    gap = float(np.abs(table.sum(-1).reshape(-1) - np.asarray(whole)).max())
    if gap > 1e-6:
        return False, f"the conditionals do not sum to log_prob: off by {gap:.2g} nats"
    index, reads = np.arange(dims), reads_of(table)
    own = np.exp(table[:, index, :, index]).sum(-1)  # [dims, n]
    blind = np.flatnonzero(np.abs(own - 1).max(1) > 1e-5)
    if len(blind):
        return False, f"p(x_d | ...) does not sum to 1 over x_d, which it may see: d = {_some(blind)}"
    order, left = order_of(reads)
    if left:
        return False, f"no order: among the variables {_some(left)} each reads another of them"
    first = np.flatnonzero(~reads.any(0))
    if len(first) > 1:
        return False, f"{len(first)} variables read none before them: d = {_some(first)}; one may"
    return True, f"order {_some(order)}; {reads.sum()} of {dims * (dims - 1) // 2} dependencies"


def reads_of(table: np.ndarray) -> np.ndarray:
    """Whether a variable changes another's conditional, [changed, conditional], by a table of `conditionals`."""
    reads = np.ptp(table, axis=2).max(0) > 1e-9
    np.fill_diagonal(reads, False)
    return reads


def order_of(reads: np.ndarray) -> tuple[list[int], list[int]]:
    """Variables in an order in which each reads but earlier ones, and those that are left, which have none."""
    order, left = [], list(range(len(reads)))
    while free := [d for d in left if not reads[left, d].any()]:
        order += free
        left = [d for d in left if d not in free]
    return order, left


def predicts(model: Model, space: Space, seed: int) -> Result:
    """What is predicted of each variable is the mean of its conditional."""
    needs(model, "predict", "log_conditionals")
    assert model.predict is not None
    params, batch, table = conditionals(model, space, seed)
    index, shape = np.arange(table.shape[-1]), table.shape
    predicted = jax.jit(lambda params, batch: model.predict(params, None, batch))(params, batch)
    own = np.asarray(predicted).reshape(shape)[:, index, :, index]  # [dims, n, levels]
    mean = (np.exp(table[:, index, :, index]) * np.asarray(space.values)).sum(-1)
    gap = np.abs(own - mean[..., None]).max()
    return bool(gap < 1e-5), f"off the conditionals' means by {gap:.2g}"


@functools.lru_cache(maxsize=1)
def conditionals(model: Model, space: Space, seed: int) -> tuple[Params, Batch, np.ndarray]:
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


def coded(model: Model, space: Space, seed: int) -> Result:
    """encode gives finite codes, and decode makes events of them."""
    needs(model, "encode")
    params, batch = perturbed(model, space, seed), random_batch(space, seed, 6)
    encode, decode = model.encode, model.decode
    assert encode is not None
    codes = jax.jit(lambda params, batch: encode(params, None, batch))(params, batch)
    shapes = [code.shape for code in jax.tree.leaves(codes)]
    if not all(shape[0] == 6 for shape in shapes) or not is_finite(codes):
        return False, f"codes of 6 events are not finite, or have the shapes {shapes}"
    if decode is None:
        return True, f"codes {shapes}"
    x = jax.jit(lambda params, codes, cond: decode(params, None, codes, cond))(params, codes, batch.get("cond"))
    return x.shape == batch["x"].shape and is_finite(x), f"codes {shapes} -> {x.shape}"


def denoised(model: Model, space: Space, seed: int) -> Result:
    """The estimate of x_0 is finite at every noise level, like x, and depends on x_t and on t."""
    needs(model, "denoise")
    assert model.denoise is not None
    params, batch = perturbed(model, space, seed), random_batch(space, seed, 6)
    x, cond = batch["x"], batch.get("cond")
    denoise = jax.jit(lambda x, t: model.denoise(params, None, x, jnp.full(6, t), cond))
    outputs = [denoise(x, t) for t in (1e-3, 0.5, 1.0)]
    if not all(y.shape == x.shape and y.dtype == x.dtype and is_finite(y) for y in outputs):
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


def is_finite(tree: PyTree) -> bool:
    """Whether all numbers of a tree are."""
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def _some(items: object) -> str:
    listed = [str(int(item)) for item in items]  # type: ignore[attr-defined]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
