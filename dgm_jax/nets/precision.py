"""Nets that compute in bfloat16 around parameters in float32.

bfloat16 has eight binary digits: a sum in it no longer grows once it is 256 times what is added. Products add up in
float32 by themselves. The gradient of what is repeated, such as a bias at every pixel, is a sum too: hence `broadcast`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.types import Array, PyTree


class Net(NamedTuple):
    """The two functions of a Linen module that models use."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


def rounded(tree: PyTree) -> PyTree:
    """A tree with its floating-point leaves in bfloat16: one in float32 would draw all that it meets up to it."""

    def of(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(of, tree)


def widened(x: Array) -> Array:
    """At least in float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def broadcast(x: Array, shape: Sequence[int]) -> Array:
    """`jnp.broadcast_to`, whose gradient is summed at least in float32."""
    return jnp.broadcast_to(widened(x), shape).astype(x.dtype)


def mixed(module: nn.Module, bf16: bool = True) -> Net:
    """The module's functions; with `bf16`, `apply` rounds parameters and the first input, and computes in bfloat16.

    Parameters, their gradients and what comes out of the net stay as wide as they are; norms and softmax are computed
    in float32. Other inputs, such as times, are not rounded here: of conditions, `rounded` does it.
    """

    def apply(variables: Any, x: Array, *arguments: Any, **options: Any) -> Any:
        y = module.apply(rounded(variables), rounded(x), *arguments, **options)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(x.dtype, jnp.float32)), y)

    return Net(module.init, apply if bf16 else module.apply)
