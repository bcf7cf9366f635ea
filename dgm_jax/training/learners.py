"""Learners: the three constructors. What changes a Learner into another lies in `wrappers.py`.

Keys derive by fold_in: the run's key -> step -> player -> micro-batch or device. A key is used once, so none is
checkpointed. Metrics are reduced inside the step; an idle player's are NaN and are averaged with nanmean.
`finite` is 1 while the loss and the gradient of every active player are finite, "<player>/finite" while its own are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from dgm_jax.numerics import masked_mean
from dgm_jax.types import Array, Batch, Key, Learner, Loss, Metrics, Out, Params, Player, PyTree, State

INIT = 2**31 - 2  # the initial draws: an index in the run's key that no step reaches
UPDATE = 2**31 - 1  # those of Loss.update: an index in the player's key that no micro-batch or device reaches


def per_example(f: Callable[[Params, Key, Batch], Metrics]) -> Loss:
    """Lift per-example terms to a Loss: the mean of each over the unmasked examples.

    Args:
        f: (params, key, batch) -> {"loss": [B], any other term: [B]}, in nats; every term is logged.
    """

    def apply(params: Params, carry: PyTree, key: Key, batch: Batch) -> tuple[Array, Out]:
        terms = f(params, key, batch)
        chex.assert_shape(
            list(terms.values()),
            (jax.tree.leaves(batch)[0].shape[0],),
            custom_message=f"the terms {', '.join(terms)} of a loss are one number an example, and are averaged here",
        )
        means = {name: masked_mean(values, batch.get("mask")) for name, values in terms.items()}
        return means["loss"], Out(means, carry)

    return Loss(lambda params, key, batch: (), apply)


def trainable(params: Params) -> Params:
    """Params without the entries under "buffers": what optimizers and averages see."""
    if not isinstance(params, Mapping):
        return params
    return {name: trainable(value) for name, value in params.items() if name != "buffers"}


def overlay(params: Params, new: Params) -> Params:
    """`params` with the leaves of `new` in place of its own; what `new` lacks stays."""
    if not isinstance(new, Mapping):
        return new
    return {name: overlay(value, new[name]) if name in new else value for name, value in params.items()}


def averaged_params(state: State) -> Params:
    """What evaluation and sampling use: the averaged parameters where the learner keeps them."""
    return overlay(state.params, state.ema) if jax.tree.leaves(state.ema) else state.params


def gradient(
    init: Callable[[Key, Batch], Params],
    loss: Loss,
    tx: optax.GradientTransformation,
    micro: int = 1,
    axis: str | None = None,
) -> Learner:
    """One player that descends `loss` in all of params but the buffers.

    Args:
        init: (key, batch) -> params.
        loss: what is descended.
        tx: the optimizer.
        micro: gradients are accumulated over this many micro-batches, weighted by their unmasked examples.
        axis: under `wrappers.over_devices`, the name of its axis: a device's batch is a micro-batch then.
    """

    def learner_init(key: Key, batch: Batch) -> State:
        key = jax.random.fold_in(key, INIT)
        params = init(jax.random.fold_in(key, 0), batch)
        carry = loss.init(params, jax.random.fold_in(key, 1), batch)
        return State(jnp.zeros((), jnp.int32), params, tx.init(trainable(params)), carry)

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        player_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 0)
        params, opt, carry, metrics = _descend(
            loss, tx, micro, axis, state.params, state.opt, state.carry, player_key, batch
        )
        return state._replace(step=state.step + 1, params=params, opt=opt, carry=carry), metrics

    return Learner(learner_init, step)


def game(
    init: Callable[[Key, Batch], Params], players: Mapping[str, Player], micro: int = 1, axis: str | None = None
) -> Learner:
    """Players that take turns in dict order, each descending its own loss in its own params[name].

    A player sees the parameters that those before it have just reached. One with every=n plays at the
    steps 0, n, 2n, ...; at the others its metrics are NaN.

    Args:
        init: (key, batch) -> params, one entry a player.
        players: name -> Player.
        micro, axis: as in `gradient`.
    """

    def learner_init(key: Key, batch: Batch) -> State:
        key = jax.random.fold_in(key, INIT)
        params = init(jax.random.fold_in(key, 0), batch)
        if set(params) != set(players):
            raise ValueError(f"a game of {sorted(players)} cannot be played with params of {sorted(params)}")
        carry_key = jax.random.fold_in(key, 1)
        return State(
            jnp.zeros((), jnp.int32),
            params,
            {name: player.tx.init(trainable(params[name])) for name, player in players.items()},
            {
                name: player.loss.init(params, jax.random.fold_in(carry_key, i), batch)
                for i, (name, player) in enumerate(players.items())
            },
        )

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        params, opt, carry = dict(state.params), dict(state.opt), dict(state.carry)
        metrics: Metrics = {}
        finite = jnp.ones(())
        for i, (name, player) in enumerate(players.items()):

            def play(own: Params, opt: PyTree, carry: PyTree) -> tuple[Params, PyTree, PyTree, Metrics]:
                player_key = jax.random.fold_in(step_key, i)
                loss = _of_player(player.loss, name, params)
                return _descend(loss, player.tx, micro, axis, own, opt, carry, player_key, batch)

            own = params[name], opt[name], carry[name]
            if player.every == 1:
                params[name], opt[name], carry[name], own_metrics = play(*own)
            else:
                shapes = jax.eval_shape(play, *own)[3]

                def idle(*own: PyTree) -> tuple[Params, PyTree, PyTree, Metrics]:
                    return (*own, {k: jnp.full(v.shape, jnp.nan, v.dtype) for k, v in shapes.items()})

                params[name], opt[name], carry[name], own_metrics = jax.lax.cond(
                    state.step % player.every == 0, play, idle, *own
                )
            finite = jnp.fmin(finite, own_metrics["finite"])  # that of an idle player is NaN
            metrics |= {f"{name}/{k}": v for k, v in own_metrics.items()}
        metrics["finite"] = finite
        return state._replace(step=state.step + 1, params=params, opt=opt, carry=carry), metrics

    return Learner(learner_init, step)


def em(
    init: Callable[[Key, Batch], Params],
    expect: Callable[[Params, Key, Batch], tuple[PyTree, Array]],
    maximize: Callable[[PyTree], Params],
    rate: Callable[[Array], Array] | None = None,
    every: int = 1,
    axis: str | None = None,
) -> Learner:
    """Expectation-maximization: statistics summed over `every` steps, then the M-step.

    With every = the steps of a pass this is EM proper, which never descends. With `rate`, the sums are
    blended into running statistics: stochastic EM (Cappé and Moulines 2009, arXiv 0712.4273).

    Args:
        init: (key, batch) -> params.
        expect: (params, key, batch) -> (statistics summed over the unmasked examples, log-likelihood [B]).
        maximize: (statistics) -> params.
        rate: number of M-steps taken -> weight of the new statistics; the first ones are all that there is, and have
            weight 1. None: they replace the old.
        every: steps from M-step to M-step.
        axis: as in `gradient`.
    """

    def learner_init(key: Key, batch: Batch) -> State:
        key = jax.random.fold_in(key, INIT)
        params = init(jax.random.fold_in(key, 0), batch)
        shapes = jax.eval_shape(expect, params, key, batch)[0]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        carry = {"sums": zeros} if rate is None else {"sums": zeros, "running": zeros}
        return State(jnp.zeros((), jnp.int32), params, (), carry)

    def step(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        step_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 0)
        part = 0 if axis is None else jax.lax.axis_index(axis)
        statistics, log_likelihood = expect(state.params, jax.random.fold_in(step_key, part), batch)
        if axis is not None:
            statistics = jax.lax.psum(statistics, axis)
        carry = {**state.carry, "sums": jax.tree.map(jnp.add, state.carry["sums"], statistics)}

        def update(carry: PyTree, params: Params) -> tuple[PyTree, Params]:
            sums, zeros = carry["sums"], jax.tree.map(jnp.zeros_like, carry["sums"])
            if rate is None:
                return {"sums": zeros}, maximize(sums)
            taken = state.step // every
            weight = jnp.where(taken == 0, 1.0, rate(taken))
            running = jax.tree.map(lambda old, new: old + weight * (new - old), carry["running"], sums)
            return {"sums": zeros, "running": running}, maximize(running)

        carry, params = jax.lax.cond(
            (state.step + 1) % every == 0, update, lambda carry, params: (carry, params), carry, state.params
        )
        loss = -masked_mean(log_likelihood, batch.get("mask"))
        if axis is not None:
            loss = _over_devices(axis, batch, loss)
        metrics = {"loss": loss, "finite": jnp.isfinite(loss).astype(loss.dtype)}
        return state._replace(step=state.step + 1, params=params, carry=carry), metrics

    return Learner(learner_init, step)


def _of_player(loss: Loss, name: str, params: Params) -> Loss:
    """A player's loss as one of its own parameters."""

    def joined(f: Callable) -> Callable:
        return lambda own, *rest: f({**params, name: own}, *rest)

    return loss._replace(apply=joined(loss.apply), update=None if loss.update is None else joined(loss.update))


def _descend(
    loss: Loss,
    tx: optax.GradientTransformation,
    micro: int,
    axis: str | None,
    params: Params,
    opt: PyTree,
    carry: PyTree,
    key: Key,
    batch: Batch,
) -> tuple[Params, PyTree, PyTree, Metrics]:
    """One update of one player: (params, opt, carry, metrics)."""
    free = trainable(params)

    def value_and_grad(carry: PyTree, i: Array | int, batch: Batch) -> tuple:
        def value(free: Params) -> tuple[Array, Out]:
            return loss.apply(overlay(params, free), carry, jax.random.fold_in(key, i), batch)

        (_, out), grads = jax.value_and_grad(value, has_aux=True)(free)
        return out.buffers, out.carry, out.examples, out.metrics, grads

    first = 0 if axis is None else micro * jax.lax.axis_index(axis)
    if micro == 1:
        buffers, carry, examples, metrics, grads = value_and_grad(carry, first, batch)
    else:
        buffers, carry, examples, metrics, grads = _accumulate(value_and_grad, micro, first, carry, batch)
    if axis is not None:
        metrics, grads = _over_devices(axis, batch, (metrics, grads))
        chains, memory = _parted(carry)
        memory, buffers = _merged((memory, buffers), lambda x: _over_devices(axis, batch, x), lambda x: x)
        carry = {**memory, **chains} if chains else memory
        examples = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), examples)
    if buffers is not None:
        params = {**params, "buffers": buffers}
    if loss.update is not None:
        out = loss.update(params, carry, jax.random.fold_in(key, UPDATE), examples)
        carry, metrics = out.carry, metrics | out.metrics
        if out.buffers is not None:
            params = {**params, "buffers": out.buffers}
    updates, opt = tx.update(grads, opt, free)
    params = overlay(params, optax.apply_updates(free, updates))
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    return params, opt, carry, metrics | {"grad_norm": norm, "finite": finite.astype(norm.dtype)}


def _over_devices(axis: str, batch: Batch, means: PyTree) -> PyTree:
    """Means over the devices' batches, weighted by their unmasked examples."""
    weight = _examples(batch)
    total = jax.lax.psum(weight, axis)
    share = jnp.where(total > 0, weight / jnp.maximum(total, 1.0), 1 / jax.lax.axis_size(axis))
    return jax.tree.map(lambda x: jax.lax.psum(share.astype(x.dtype) * x, axis), means)


def _examples(batch: Batch) -> Array:
    """How many examples the mask keeps."""
    return batch["mask"].sum() if "mask" in batch else jnp.asarray(float(jax.tree.leaves(batch)[0].shape[0]))


def _parted(carry: PyTree) -> tuple[dict[str, PyTree], PyTree]:
    """{"chains": ...}, or {} where a carry has none, and the rest of it."""
    if isinstance(carry, Mapping) and "chains" in carry:
        return {"chains": carry["chains"]}, {name: value for name, value in carry.items() if name != "chains"}
    return {}, carry


def _merged(memories: PyTree, mean: Callable[[Array], Array], one: Callable[[Array], Array]) -> PyTree:
    """What the parts of a batch each made of one memory: floats by their mean; counts, the same in all, by one."""
    return jax.tree.map(lambda x: mean(x) if jnp.issubdtype(x.dtype, jnp.floating) else one(x), memories)


def _accumulate(value_and_grad: Callable, micro: int, first: Array | int, carry: PyTree, batch: Batch) -> tuple:
    """`value_and_grad` over micro-batches: means weighted by unmasked examples; chains are split.

    All start from the same memory and buffers, as devices do, and memory counts one step.
    """

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(micro, _share(x.shape[0], micro), *x.shape[1:]), tree)

    chains, memory = _parted(carry)

    def body(nothing: None, part: tuple) -> tuple:
        i, chains, batch = part
        carry = {**memory, **chains} if chains else memory
        buffers, carry, examples, metrics, grads = value_and_grad(carry, i, batch)
        return nothing, (buffers, *_parted(carry), examples, _examples(batch), metrics, grads)

    def join(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    stacked: tuple
    _, stacked = jax.lax.scan(body, None, (first + jnp.arange(micro), split(chains), split(batch)))
    buffers, chains, memories, examples, weights, metrics, grads = stacked  # [micro, ...]
    total = weights.sum()
    share = jnp.where(total > 0, weights / jnp.maximum(total, 1.0), 1 / micro)

    def mean(x: Array) -> Array:
        return jnp.tensordot(share.astype(x.dtype), x, axes=1)

    metrics, grads = jax.tree.map(mean, (metrics, grads))
    buffers, memory = _merged((buffers, memories), mean, lambda x: x[0])
    if chains:
        memory = {**memory, "chains": join(chains["chains"])}
    return buffers, memory, join(examples), metrics, grads


def _share(size: int, micro: int) -> int:
    if size % micro:
        raise ValueError(f"{size} examples or chains cannot be split over micro={micro}: make one divide the other")
    return size // micro
