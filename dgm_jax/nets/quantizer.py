"""Vectors as the nearest of a codebook's, which a gradient passes as if nothing had happened.

    code(z) = argmin_k |z - e_k|        value e_code(z),   gradient d e_code(z) / d z := 1

References: van den Oord et al. 2017, arXiv 1711.00937; straight-through: Bengio et al. 2013, arXiv 1308.3432.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from dgm_jax.types import Array, Key

JITTER = 0.01  # of new codes, relative to the spread of the vectors: no two codes are one and the same


def nearest(z: Array, codebook: Array) -> Array:
    """The codes [...], int32, of vectors z [..., D] in a codebook [K, D]; of equally near ones the first."""
    centre = codebook.mean(0)  # far from 0 the squares below would hide what the codes differ by
    wide, codebook = z.astype(codebook.dtype) - jnp.broadcast_to(centre, z.shape), codebook - centre[None]
    products = jnp.matmul(wide, codebook.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.expand_dims((codebook**2).sum(-1), range(z.ndim - 1))
    return jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)


def straight_through(z: Array, codebook: Array) -> Array:
    """The nearest vector of the codebook for each of z [..., D], to the bit; its gradient goes to z, unchanged."""
    held = stop_gradient(z)
    return stop_gradient(codebook[nearest(z, codebook)]).astype(z.dtype) + (z - held)


def jittered(key: Key, vectors: Array, spread: Array) -> Array:
    """Vectors [K, D] moved a little, in proportion to their `spread` []."""
    return vectors + JITTER * spread * jax.random.normal(key, vectors.shape, vectors.dtype)


def first_codebook(key: Key, z: Array, codes: int) -> Array:
    """A codebook [codes, D] of vectors drawn from z [..., D], each at most once where there are enough."""
    order_key, jitter_key = jax.random.split(key)
    flat = z.reshape(-1, z.shape[-1])
    order = jax.random.permutation(order_key, flat.shape[0])
    return jittered(jitter_key, flat[order[jnp.arange(codes) % flat.shape[0]]], flat.std())
