"""Ancestral sampling of a vector, a dimension at a time: what MADE and the NADEs share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.models.outputs import Output
from dgm_jax.types import Array, Batch, Key, Params, PyTree


class Recursion(NamedTuple):
    """One example's conditionals, each at the cost of its own dimension."""

    start: PyTree  # the state before any value is known
    raw: Callable[[PyTree, Array], Array]  # (state, d) -> [size], what the Output of dimension d is given
    update: Callable[[PyTree, Array, Array], PyTree]  # (state, d, x_d) -> state


def draw(
    output: Output, recursion: Recursion, order: Array, key: Key, given: Array, observed: Array, temperature: float
) -> Array:
    """Draw one example [D], in the order [D] of its dimensions; what is `observed` [D] is as `given` [D]."""

    def step(carry: tuple[PyTree, Array], at: tuple[Array, Key]) -> tuple[tuple[PyTree, Array], None]:
        state, x = carry
        d, key = at
        drawn = output.sample(key, recursion.raw(state, d), temperature)
        value = jnp.where(observed[d] != 0, given[d], drawn)
        return (recursion.update(state, d, value), x.at[d].set(value)), None

    start = recursion.start, jnp.zeros_like(given)
    (_, x), _ = jax.lax.scan(step, start, (order, jax.random.split(key, order.shape[0])))
    return x


def samplers(
    one: Callable[[Params, Key, Array, Array, Array | None, float], Array],
    shape: tuple[int, ...],
    vector: Callable[[Array | None, Array], Array | None],
    over_examples: Callable[[Callable], Callable] = jax.vmap,
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """A model's `sample` and `complete`.

    Args:
        one: (params, key, given [D], observed [D], vector [C] or None, temperature) -> one example [D].
        shape: of an event.
        vector: (cond, like) -> what the net reads of batch["cond"], [B, C] or None.
        over_examples: jax.vmap, or `in_turn` where an example takes much memory.
    """
    dims = math.prod(shape)

    def every(params: Params, key: Key, given: Array, observed: Array, cond: Array | None, temperature: float) -> Array:
        def draw_one(key: Key, given: Array, observed: Array, cond: Array | None) -> Array:
            return one(params, key, given, observed, cond, temperature)

        keys = jax.random.split(key, given.shape[0])
        return over_examples(draw_one)(keys, given, observed, vector(cond, given)).reshape(-1, *shape)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        nothing = jnp.zeros((n, dims), jax.tree.leaves(params)[0].dtype)
        return every(params, key, nothing, nothing, cond, temperature)

    def complete(params: Params, key: Key, batch: Batch) -> Array:
        """Draws the unobserved dimensions in the order, each given all that come before it.

        That is the exact conditional where the observed dimensions come first in the order, or where `one` puts
        them there. Otherwise it is ancestral sampling with the observed dimensions clamped: a draw ignores those
        that come later. And of a mixture over orders or masks, it is of a member that was drawn without regard to x.
        """
        x, observed = (batch[name].reshape(-1, dims) for name in ("x", "observed"))
        return every(params, key, x, observed, batch.get("cond"), 1.0)

    return sample, complete


def in_turn(f: Callable[..., Array]) -> Callable[..., Array]:
    """An example at a time, like jax.vmap in what it gives."""
    return lambda *args: jax.lax.map(lambda one: f(*one), args)
