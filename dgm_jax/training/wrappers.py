"""Functions from Learner to Learner: averaging, data transforms, seeds, several updates a dispatch.

A run composes them in this order, innermost first: with_ema, fully_sharded or over_devices, transformed, scan_steps,
with_seeds, gathered. Seeds in turn then take all updates of a dispatch each, while its parameters are in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgm_jax.training.learners import INIT, trainable
from dgm_jax.training.parallel import SMALL, Mesh, Rules, is_chain, layout, without
from dgm_jax.types import Array, Batch, Key, Learner, Metrics, PyTree, State

DEVICES = "devices"  # the axis of `over_devices`
TRANSFORM = 2**31 - 1  # the data's own draws: an index in the step's key that no player reaches


def with_ema(learner: Learner, decay: float) -> Learner:
    """Average the trained parameters exponentially; the first steps are averaged over a shorter window.

    Args:
        learner: what trains.
        decay: weight of the old average, reached from below as min(decay, (1 + t) / (10 + t)).
    """

    def init(key: Key, batch: Batch) -> State:
        state = learner.init(key, batch)
        # a copy: the loop donates the state, and no buffer may be donated twice
        return state._replace(ema=jax.tree.map(jnp.copy, trainable(state.params)))

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        new, metrics = learner.step(state, key, batch)
        t = new.step.astype(jnp.float32)
        weight = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
        ema = jax.tree.map(lambda old, p: old + weight.astype(old.dtype) * (p - old), state.ema, trainable(new.params))
        return new._replace(ema=ema), metrics

    return Learner(init, step)


def over_devices(learner: Learner, n: int) -> Learner:
    """Split every batch, and the chains, over n devices under `jax.pmap`; the rest of the State is on all of them.

    n devices draw what one device with micro=n draws.

    Args:
        learner: made with axis=DEVICES; its `init` sees whole batches.
        n: devices.
    """

    def on_chains(f: Callable[[Array], PyTree], state: State, rest: Callable[[Array], PyTree]) -> PyTree:
        def of(path: tuple, leaf: Array) -> PyTree:
            return (f if is_chain(path) else rest)(leaf)

        return jax.tree_util.tree_map_with_path(of, state)

    def parts(x: Array) -> Array:
        if x.shape[0] % n:
            raise ValueError(f"{x.shape[0]} examples or chains cannot be split over {n} devices: take a multiple")
        return x.reshape(n, -1, *x.shape[1:])

    def same(x: Array) -> Array:
        return x

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        axes = on_chains(lambda _: 0, state, lambda _: None)
        over = jax.pmap(learner.step, DEVICES, in_axes=(axes, None, 0), out_axes=(axes, None))
        state, metrics = over(on_chains(parts, state, same), key, jax.tree.map(parts, batch))
        return on_chains(lambda x: x.reshape(-1, *x.shape[2:]), state, same), metrics

    return Learner(learner.init, step)


def fully_sharded(learner: Learner, mesh: Mesh, rules: Rules = (), small: int = SMALL) -> Learner:
    """Gather what is split over `fsdp` for the time of a step, and reduce gradients into the parts (Rajbhandari et al.
    2020, arXiv 1910.02054). Left alone, the compiler may move activations instead.

    Args:
        learner: what trains.
        mesh, rules, small: as `parallel.layout` takes them.
    """

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        parts = layout(state, mesh, rules, small=small).params
        whole = jax.tree.map(lambda sharding: without(sharding, "fsdp"), parts)
        gathered = jax.lax.with_sharding_constraint(state.params, whole)
        new, metrics = learner.step(state._replace(params=gathered), key, batch)
        return new._replace(params=jax.lax.with_sharding_constraint(new.params, parts)), metrics

    return Learner(learner.init, step)


def transformed(learner: Learner, transform: Callable[[Key, Batch], Batch]) -> Learner:
    """Draw the data's own randomness (binarization, dequantization) inside the step.

    Args:
        learner: what trains on the transformed batch.
        transform: (key, batch) -> batch.
    """

    def init(key: Key, batch: Batch) -> State:
        data_key = jax.random.fold_in(jax.random.fold_in(key, INIT), TRANSFORM)
        return learner.init(key, transform(data_key, batch))

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        data_key = jax.random.fold_in(jax.random.fold_in(key, state.step), TRANSFORM)
        return learner.step(state, key, transform(data_key, batch))

    return Learner(init, step)


def with_seeds(learner: Learner, n: int, vectorize: bool = True) -> Learner:
    """Train n seeds at once: takes [n] keys; all but `state.step` and the batch has a leading [n].

    Args:
        learner: what every seed runs.
        n: number of seeds.
        vectorize: under vmap; else in turn under lax.map, which is faster for convolutions on the CPU.
    """

    def over_seeds(f: Callable, *arguments: PyTree) -> PyTree:
        return jax.vmap(f)(*arguments) if vectorize else jax.lax.map(lambda a: f(*a), arguments)

    def init(keys: Key, batch: Batch) -> State:
        if keys.shape != (n,):
            raise ValueError(f"with_seeds({n}) takes {n} keys, not keys of shape {keys.shape}")
        state = over_seeds(lambda key: learner.init(key, batch), keys)
        return state._replace(step=state.step[0])

    def step(state: State, keys: Key, batch: Batch) -> tuple[State, Metrics]:
        def one(own: tuple, key: Key) -> tuple[State, Metrics]:
            return learner.step(State(state.step, *own), key, batch)

        _, *own = state
        new, metrics = over_seeds(one, tuple(own), keys)
        return new._replace(step=new.step[0]), metrics

    return Learner(init, step)


def scan_steps(learner: Learner, n: int) -> Learner:
    """Run n updates a dispatch: `step` takes n batches stacked, [n, B, ...].

    Metrics are averaged over the n updates. After a non-finite update they are those of the first such
    update, and `finite` is the share of updates before it.
    """

    def init(key: Key, batches: Batch) -> State:
        return learner.init(key, jax.tree.map(lambda x: x[0], batches))

    def step(state: State, key: Key, batches: Batch) -> tuple[State, Metrics]:
        if n == 1:  # no loop: strided or transposed convolutions of a user's net are slow in one on the CPU
            return learner.step(state, key, jax.tree.map(lambda x: x[0], batches))
        state, metrics = jax.lax.scan(lambda s, batch: learner.step(s, key, batch), state, batches)
        good = jnp.cumprod(metrics["finite"])
        finite = good.mean()
        first_bad = jnp.minimum(good.sum().astype(jnp.int32), n - 1)

        def reduce(values: Array) -> Array:
            return jnp.where(finite < 1, values[first_bad], jnp.nanmean(values, axis=0))

        return state, {name: reduce(values) for name, values in metrics.items()} | {"finite": finite}

    return Learner(init, step)


def gathered(learner: Learner) -> Learner:
    """Gather batches on the device: `step` takes {"data": arrays [N, ...], "index": [..., B]}."""

    def gather(source: Batch) -> Batch:
        index = source["index"]
        return {name: values[index] for name, values in source["data"].items()} | {"index": index}

    return Learner(
        lambda key, source: learner.init(key, gather(source)),
        lambda state, key, source: learner.step(state, key, gather(source)),
    )
