"""What models are conditional on: class labels, vectors, images, or maps of codes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from dgm_jax.types import Array, Key


def label_of(classes: int, cond: Array | None) -> Array | None:
    """The labels [B] that a model of so many classes takes from batch["cond"], or None where it has no classes.

    Raises:
        ValueError: there are classes, and no labels, or not one an example.
    """
    if not classes:
        return None
    if cond is None:
        raise ValueError(f"this model is conditional on {classes} classes: give the labels as `cond`")
    if cond.ndim != 1:
        raise ValueError(f"labels are whole numbers, one an example: `cond` [B], and it has the shape {cond.shape}")
    return cond


def labels(classes: int, cond: Array | None, key: Key, n: int) -> Array | None:
    """The labels [n] of n samples: those that are given, or else, where there are classes, uniform draws."""
    return jax.random.randint(key, (n,), 0, classes) if classes and cond is None else cond


def vector_of(classes: int, cond_size: int, cond: Array | None, like: Array) -> Array | None:
    """batch["cond"] as vectors [B, K]: labels one-hot, vectors of `cond_size` as they are; None where neither is set.

    Args:
        classes: number of labels, or 0.
        cond_size: length of the vectors, or 0.
        cond: labels [B] or vectors [B, cond_size].
        like: an array of the dtype that is wanted.

    Raises:
        ValueError: both are set; or one is, and `cond` is not there or has another shape.
    """
    if classes and cond_size:
        raise ValueError(f"a model is conditional on labels or on vectors: classes={classes}, cond_size={cond_size}")
    if not cond_size:
        label = label_of(classes, cond)
        return None if label is None else jax.nn.one_hot(label, classes, dtype=like.dtype)
    if cond is None or cond.shape != (like.shape[0], cond_size):
        found = "there is none" if cond is None else f"it has the shape {cond.shape}"
        raise ValueError(f"this model is conditional on vectors of {cond_size} numbers: give them as `cond`; {found}")
    return cond.astype(like.dtype)


def array_of(classes: int, cond_shape: tuple[int, ...], cond: Array | None, like: Array) -> Array | None:
    """batch["cond"] as an array [B, *cond_shape], labels as one-hot vectors; None where neither is set.

    Args:
        classes: number of labels, or 0.
        cond_shape: shape of one condition, or () for none.
        cond: labels [B] or arrays [B, *cond_shape].
        like: an array of the dtype that is wanted.

    Raises:
        ValueError: both are set; or one is, and `cond` is not there or has another shape.
    """
    if len(cond_shape) < 2 or classes:
        return vector_of(classes, math.prod(cond_shape) if cond_shape else 0, cond, like)
    if cond is None or cond.shape[1:] != tuple(cond_shape):
        found = "there is none" if cond is None else f"it has the shape {cond.shape}"
        raise ValueError(f"this model is conditional on arrays of shape {cond_shape}: give them as `cond`; {found}")
    return cond.astype(like.dtype)


def beside(x: Array, c: Array | None) -> Array:
    """x [B, ..., C] and a condition: one of its own height and width, or a vector at every place, as more channels."""
    if c is None:
        return x
    if x.ndim == 2 or c.shape[1:-1] != x.shape[1:-1]:
        c = jnp.expand_dims(c.reshape(c.shape[0], -1), range(1, x.ndim - 1))
        c = jnp.broadcast_to(c, (*x.shape[:-1], c.shape[-1]))
    return jnp.concatenate([x, c], axis=-1)


def map_of(codes: int, cond: Array | None, like: Array) -> Array:
    """batch["cond"], a map of so many codes [B, h, w], one-hot [B, h, w, codes]; `like` has the dtype that is wanted.

    Raises:
        ValueError: it is not there, or is no map.
    """
    if cond is None or cond.ndim != 3:
        found = "there is none" if cond is None else f"it has the shape {cond.shape}"
        raise ValueError(f"this model is conditional on a map of {codes} codes: give it as `cond` [B, h, w]; {found}")
    return jax.nn.one_hot(cond, codes, dtype=like.dtype)
