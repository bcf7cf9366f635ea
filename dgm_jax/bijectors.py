"""Invertible functions with their log-determinants, as pairs of pure functions over batches.

Arrays are [B, *event], log-determinants [B] in nats. The batch axis is explicit because the networks inside need it:
under vmap, the weight gradient of a convolution would be formed for every example before it is summed. A bijector with
parameters is a function of them: `chain` and `scan` put together what a model closes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, PyTree


class Bijector(NamedTuple):
    """y = f(x) and back, each with the log of the absolute determinant of its own Jacobian."""

    forward: Callable[[Array], tuple[Array, Array]]  # x -> (y, log |dy/dx|)
    inverse: Callable[[Array], tuple[Array, Array]]  # y -> (x, log |dx/dy|)


def invert(bijector: Bijector) -> Bijector:
    """The same bijector read backwards."""
    return Bijector(bijector.inverse, bijector.forward)


def chain(*bijectors: Bijector) -> Bijector:
    """The first bijector, then the second, and so on."""

    def run(functions: list[Callable[[Array], tuple[Array, Array]]], x: Array) -> tuple[Array, Array]:
        total = jnp.zeros(x.shape[0], x.dtype)
        for function in functions:
            x, log_det = function(x)
            total += log_det
        return x, total

    return Bijector(
        lambda x: run([b.forward for b in bijectors], x),
        lambda y: run([b.inverse for b in reversed(bijectors)], y),
    )


def scan(make: Callable[[PyTree], Bijector], stacked: PyTree) -> Bijector:
    """A chain of bijectors that differ in their parameters only.

    Args:
        make: parameters of one -> a bijector that keeps the shape of its argument.
        stacked: the parameters of all, along a leading axis.
    """

    def run(direction: str, x: Array) -> tuple[Array, Array]:
        def step(carry: tuple[Array, Array], params: PyTree) -> tuple[tuple[Array, Array], None]:
            x, total = carry
            x, log_det = getattr(make(params), direction)(x)
            return (x, total + log_det), None

        start = x, jnp.zeros(x.shape[0], x.dtype)
        return jax.lax.scan(step, start, stacked, reverse=direction == "inverse")[0]

    return Bijector(lambda x: run("forward", x), lambda y: run("inverse", y))


def rearrange(there: Callable[[Array], Array], back: Callable[[Array], Array]) -> Bijector:
    """A rearrangement of the entries of x: a permutation, a reshape, a squeeze. Its log-determinant is 0."""

    def volume_kept(function: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Array]]:
        return lambda x: (function(x), jnp.zeros(x.shape[0], x.dtype))

    return Bijector(volume_kept(there), volume_kept(back))


def on_last_half(inner: Bijector) -> Bijector:
    """Applies `inner` to the second half of the channels, x [..., C]; the first half is done with.

    It is how a multi-scale flow factors out variables: Dinh et al. 2017, arXiv 1605.08803, section 3.6.
    """

    def run(function: Callable[[Array], tuple[Array, Array]], x: Array) -> tuple[Array, Array]:
        kept, rest = jnp.split(x, 2, axis=-1)
        rest, log_det = function(rest)
        return jnp.concatenate([kept, rest], axis=-1), log_det

    return Bijector(lambda x: run(inner.forward, x), lambda y: run(inner.inverse, y))


def affine_coupling(mask: Array, net: Callable[[Array], tuple[Array, Array]]) -> Bijector:
    """y = mask x + (1 - mask) (x exp(s) + t), where (s, t) = net(mask x).

    Args:
        mask: [*event] of zeros and ones; what it keeps is unchanged and decides the rest.
        net: [B, *event] -> (s, t), both [B, *event]; any function at all.

    Source: Dinh et al. 2017, arXiv 1605.08803, equation 9.
    """

    def scale_and_shift(kept: Array) -> tuple[Array, Array]:
        keep = mask[None].astype(kept.dtype)
        s, t = net(kept * keep)
        return s * (1 - keep), t * (1 - keep)

    def forward(x: Array) -> tuple[Array, Array]:
        s, t = scale_and_shift(x)
        return x * jnp.exp(s) + t, sum_event(s)

    def inverse(y: Array) -> tuple[Array, Array]:
        s, t = scale_and_shift(y)
        return (y - t) * jnp.exp(-s), -sum_event(s)

    return Bijector(forward, inverse)
