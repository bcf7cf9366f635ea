"""Events small enough to be summed over, and the batches and parameters that the checks run on."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dgm_jax.training.compilation import jit_once
from dgm_jax.training.learners import overlay, trainable
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree

MAX_STATES = 2**16
PATTERNS = 3  # clusters of the random data


class Check(NamedTuple):
    """What one check found."""

    name: str
    ok: bool | None  # None: does not apply
    detail: str  # numbers, or why


Result = tuple[bool, str]


class NotApplicable(Exception):
    """The check asks for a capability that is not there."""


class Space(NamedTuple):
    """What an event is."""

    shape: tuple[int, ...]
    values: tuple[float, ...] = ()  # that an entry can take; () = any real number
    range: tuple[float, float] | None = None  # of real entries
    classes: int = 0  # of batch["cond"]; 0 = none


class Measure(NamedTuple):
    """Points and weights whose weighted sum of f is, or estimates, the sum or integral of f over all events."""

    x: Array  # [N, *shape]
    log_weight: Array  # [N]
    exact: bool  # else the points are random, and the sum has a standard error


def check(name: str, f: Callable[..., tuple[bool, str]], *arguments: Any) -> Check:
    """Run one check; what it raises is a failure."""
    try:
        ok, detail = f(*arguments)
        return Check(name, bool(ok), detail)
    except NotApplicable as why:
        return Check(name, None, str(why))
    except Exception as error:
        return Check(name, False, ": ".join([f"raised {type(error).__name__}", *str(error).splitlines()[:1]]))


def needs(model: Model, *capabilities: str) -> None:
    """Raise NotApplicable where the model lacks one of `capabilities`."""
    missing = [name for name in capabilities if getattr(model, name) is None]
    if missing:
        raise NotApplicable(f"the model has no {' and no '.join(missing)}")


def is_enumerable(space: Space) -> bool:
    """Whether the events can be listed."""
    return bool(space.values) and len(space.values) ** math.prod(space.shape) <= MAX_STATES


def states(space: Space) -> Array:
    """All events, [S, *shape]."""
    rows = list(itertools.product(space.values, repeat=math.prod(space.shape)))
    return jnp.asarray(rows, jnp.result_type(float)).reshape(-1, *space.shape)


def labelled(space: Space, x: Array) -> Batch:
    """A batch of events that all have the last label, where there are labels."""
    return {"x": x} | ({"cond": jnp.full(x.shape[0], space.classes - 1)} if space.classes else {})


def random_batch(space: Space, seed: int, n: int) -> Batch:
    """n events around a few random patterns: "x", and "cond" where there are labels."""
    rng = np.random.default_rng(seed)  # numpy compiles nothing
    chosen = rng.integers(PATTERNS, size=n)
    if space.values:
        patterns, other = (rng.integers(len(space.values), size=(rows, *space.shape)) for rows in (PATTERNS, n))
        switched = rng.random(other.shape) < 0.3
        x = np.asarray(space.values)[np.where(switched, other, patterns[chosen])]
    else:
        x = rng.normal(size=(PATTERNS, *space.shape))[chosen] + 0.5 * rng.normal(size=(n, *space.shape))
        if space.range is not None:
            low, high = space.range
            x = low + (high - low) / (1 + np.exp(-x))
    batch = {"x": jnp.asarray(x, jnp.result_type(float))}
    return batch | ({"cond": jnp.asarray(rng.integers(space.classes, size=n))} if space.classes else {})


def widen(tree: PyTree) -> PyTree:
    """Floats in double precision; in leaves that have it already nothing changes, their weak types neither."""
    wide = jnp.result_type(float)

    def cast(x: Array) -> Array:
        return x.astype(wide) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != wide else x

    return jax.tree.map(cast, tree)


@functools.lru_cache(maxsize=4)
def perturbed(model: Model, space: Space, seed: int) -> Params:
    """Parameters away from their initial values, at which zeros would hide errors.

    Noise is added, of a size that keeps what a layer puts out of order 1. Where there is an M-step, which may
    give parameters that noise would make invalid, it is taken on random data instead.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed))
    batch = random_batch(space, seed, 12)
    params = widen(jit_once(model.init)(init_key, batch))
    if model.expect is not None and model.maximize is not None:
        statistics, _ = jax.jit(model.expect)(params, step_key, batch)
        return widen(jax.jit(model.maximize)(statistics))
    rng = np.random.default_rng(seed)

    def moved(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        fan_in = math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
        return jnp.asarray(np.asarray(leaf) + rng.normal(size=leaf.shape) / math.sqrt(fan_in))

    return overlay(params, jax.tree.map(moved, trainable(params)))


def measure(model: Model, space: Space, params: Params, seed: int, n: int) -> Measure:
    """All events; of one or two real variables a grid of about n points; of more, n points around samples.

    Raises:
        NotApplicable: samples are needed, and the model has none.
    """
    if is_enumerable(space):
        x = states(space)
        return Measure(x, jnp.zeros(x.shape[0]), exact=True)
    if space.values:
        raise NotApplicable(f"{len(space.values)}^{math.prod(space.shape)} events are too many to be listed")
    needs(model, "sample")
    dims = math.prod(space.shape)
    drawn = np.asarray(samples(model, space, params, jax.random.key(seed), 2000)).reshape(-1, dims)
    centre, spread = drawn.mean(0), drawn.std(0) + 1e-3
    if dims <= 2:
        points = round(n ** (1 / dims))
        axes = [np.linspace(m - 9 * s, m + 9 * s, points) for m, s in zip(centre, spread, strict=True)]
        listed = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *space.shape)
        cell = sum(math.log(axis[1] - axis[0]) for axis in axes)
        return Measure(jnp.asarray(listed), jnp.full(listed.shape[0], cell), exact=True)
    # wider than the samples are
    proposal = stats.multivariate_t(centre, 1.5 * np.cov(drawn.T) + 1e-6 * np.eye(dims), df=4, seed=seed)
    x = proposal.rvs(n)
    log_weight = jnp.asarray(-proposal.logpdf(x) - math.log(n))
    return Measure(jnp.asarray(x).reshape(-1, *space.shape), log_weight, exact=False)


def samples(model: Model, space: Space, params: Params, key: Key, n: int) -> Array:
    """n samples of the model under the last label, where there are labels."""
    assert model.sample is not None
    cond = labelled(space, jnp.zeros((n, 1))).get("cond")
    return jax.jit(model.sample, static_argnums=2)(params, key, n, cond)


def log_probs(model: Model, space: Space, params: Params, x: Array) -> Array:
    """log p(x) [N] of a model that has it, or by energies summed over all events; `x` are then all events.

    Raises:
        NotApplicable: the model has neither.
    """
    batch = labelled(space, x)
    if model.log_prob is not None:
        return jax.jit(lambda params, batch: model.log_prob(params, None, batch))(params, batch)
    if model.energy is None or not is_enumerable(space):
        raise NotApplicable("the model has no exact probabilities")
    return jax.nn.log_softmax(-jax.jit(lambda params, batch: model.energy(params, None, batch))(params, batch))
