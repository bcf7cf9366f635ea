"""Causal layers over images at several resolutions, which are also computed a row or a pixel at a time.

Over whole images a layer is a convolution. At a place its input is that row, [B, 1, W, C], or that pixel, [B, 1, 1, C].
What else lies under its kernel it has kept, in collections of variables that are zero before the first row or pixel:

    "rows"    of the rows before, in nets that are computed a row at a time
    "left"    of the pixels before in this row, in nets that are computed a pixel at a time
    "above"   what these nets left under "below" at this column of the row before

A net is called at every row or pixel of full resolution. At half the resolution, (I, J) is called at four of them and
depends on nothing beyond row 2I and column 2J: it is computed at the first, (2I, 2J), and comes out the same at the
others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from dgm_jax.nets.causal import shift_down, shift_right
from dgm_jax.nets.conv import Conv, depth_to_space, space_to_depth
from dgm_jax.nets.mlp import Dense
from dgm_jax.types import Array


class Place(NamedTuple):
    """A row, or a pixel of it, at full resolution, of which `scale` rows and columns make one of the layer's."""

    row: Array
    column: Array | None = None
    scale: int = 1

    def at_stage(self, stage: int) -> Place:
        """The same, where the resolution was halved so often."""
        return self._replace(scale=2**stage)


class Causal(nn.Module):
    """Convolution over `rows` rows, the lowest being that of the output, and columns from `left` to `right` of it."""

    features: int
    rows: int
    left: int
    right: int
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, at: Place | None = None) -> Array:
        """[B, H, W, C] -> [B, H, W, features]; at a place a row, or where right = 0 a pixel."""
        window = self.rows, self.left + 1 + self.right
        above, around = (self.rows - 1, 0), (self.left, self.right)
        if at is not None:
            x, above = _window(self, x, at, *window), (0, 0)
            around = around if at.column is None else (0, 0)
        return Conv(self.features, window, (above, around), kernel_init=self.kernel_init)(x)


class Down(nn.Module):
    """Convolution over 2x2 pixels with stride 2: rows 2I - 1 and 2I, columns 2J - `left` and the next."""

    features: int
    left: int  # 0 or 1

    @nn.compact
    def __call__(self, x: Array, at: Place | None = None) -> Array:
        """[B, H, W, C] -> [B, H / 2, W / 2, features]; a row or a pixel at the place, in x's resolution."""
        down = Dense(self.features)
        if at is None:
            return down(space_to_depth(shift_right(shift_down(x), self.left)))
        window = _window(self, x, at, 2, 2)
        odd_row = (at.row // at.scale) % 2 == 1
        if at.column is None:
            y = down(space_to_depth(shift_right(window, self.left)))
            done = self.variable("rows", "y", jnp.zeros_like, y)
            y = done.value = jnp.where(odd_row, done.value, y)
            return y
        y = down(space_to_depth(window))
        odd_column = (at.column // at.scale) % 2 == 1
        left, above = (self.variable(name, "y", jnp.zeros_like, y) for name in ("left", "above"))
        y = left.value = jnp.where(odd_row, above.value, jnp.where(odd_column, left.value, y))
        self.put_variable("below", "y", y)
        return y


class Up(nn.Module):
    """Transposed convolution over 2x2 pixels with stride 2: pixel (I, J) gives the four from (2I, 2J) on."""

    features: int

    @nn.compact
    def __call__(self, x: Array, at: Place | None = None) -> Array:
        """[B, H, W, C] -> [B, 2 H, 2 W, features]; a row or a pixel at the place, in the output's resolution."""
        y = depth_to_space(Dense(4 * self.features)(x))
        if at is not None:
            y = lax.dynamic_slice_in_dim(y, (at.row // at.scale) % 2, 1, axis=1)
            if at.column is not None:
                y = lax.dynamic_slice_in_dim(y, (at.column // at.scale) % 2, 1, axis=2)
        return y


def _window(layer: nn.Module, x: Array, at: Place, rows: int, columns: int) -> Array:
    """The last `rows` rows up to x, [B, rows, W, C]; of a pixel their last columns, [B, rows, columns, C]."""
    b, _, width, c = x.shape
    if at.column is None:
        seen = layer.variable("rows", "x", jnp.zeros, (b, rows, width, c), x.dtype)
        is_new, axis = at.row % at.scale == 0, 1
    else:
        above = layer.variable("above", "x", jnp.zeros, (b, rows - 1, 1, c), x.dtype).value
        x = jnp.concatenate([above, x], axis=1)
        is_last = (at.row + 1) % at.scale == 0  # else the row below is one of the same pixels, with the same above
        layer.put_variable("below", "x", jnp.where(is_last, x[:, 1:], above))
        seen = layer.variable("left", "x", jnp.zeros, (b, rows, columns, c), x.dtype)
        is_new, axis = at.column % at.scale == 0, 2
    moved = jnp.concatenate([lax.slice_in_dim(seen.value, 1, None, axis=axis), x], axis=axis)
    seen.value = jnp.where(is_new, moved, seen.value)
    return seen.value
