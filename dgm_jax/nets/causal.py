"""Causal convolutions over images in raster order, written so that a pixel can also be computed alone.

What a pixel may see is in two parts: the rows above (`Above`, all of their columns), and of its own row the pixels to
the left and itself (`Left`). A net of these two and of functions of single pixels is evaluated for whole images
in training. In sampling, what comes from above is computed once a row, what comes from the left once a pixel from
the few pixels under the kernel: no layer computes anything twice.

The channels of a pixel are ordered too. With `groups` the features are parted into so many equal groups, in order,
and group g sees the groups up to g of the same pixel; with `strict` only those before (mask A of van den Oord et al.
2016, arXiv 1601.06759, as against mask B).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dgm_jax.nets.conv import conv
from dgm_jax.nets.precision import broadcast
from dgm_jax.types import Array


def group_mask(inputs: int, features: int, groups: int, strict: bool) -> np.ndarray:
    """bool [inputs, features]: which features of a pixel see which of its inputs."""
    below, above = (np.arange(n) * groups // n for n in (inputs, features))
    return below[:, None] < above[None, :] if strict else below[:, None] <= above[None, :]


def shift_down(x: Array, by: int = 1) -> Array:
    """[B, H, W, C] moved by so many rows, from zeros."""
    return jnp.pad(x, [(0, 0), (by, 0), (0, 0), (0, 0)])[:, : x.shape[1]]


def shift_right(x: Array, by: int = 1) -> Array:
    """[B, H, W, C] moved by so many columns, from zeros."""
    return jnp.pad(x, [(0, 0), (0, 0), (by, 0), (0, 0)])[:, :, : x.shape[2]]


def push(window: Array, x: Array) -> Array:
    """A window [K, ...] of the last values, moved on by x [...]."""
    return jnp.concatenate([window[1:], x[None]])


class Above(nn.Module):
    """Convolution over `rows` rows, the lowest being that of the output, and `columns` columns around it."""

    features: int
    rows: int
    columns: int
    use_bias: bool = True
    gain: float = 1.0  # of the kernel's standard deviation at the start

    @nn.compact
    def __call__(self, x: Array, of_row: bool = False) -> Array:
        """[B, H, W, C] -> [B, H, W, features]; `of_row`: the window of rows [rows, B, W, C] -> [B, W, features]."""
        shape = self.rows, self.columns, x.shape[-1], self.features
        start = nn.initializers.variance_scaling(self.gain**2, "fan_in", "truncated_normal")
        kernel = self.param("kernel", start, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        around = (self.columns // 2, (self.columns - 1) // 2)
        if of_row:
            y = conv(jnp.swapaxes(x, 0, 1), kernel, [(0, 0), around])[:, 0]
        else:
            y = conv(x, kernel, [(self.rows - 1, 0), around])
        return y if bias is None else y + broadcast(bias, y.shape)


class Left(nn.Module):
    """Convolution over `columns` columns of a row, the last being that of the output."""

    features: int
    columns: int = 1
    groups: int = 1
    strict: bool = False
    copies: int = 1  # of the groups, such as the gates of an LSTM: copies * features come out
    zeros: bool = False  # the kernel starts at zero
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, of_pixel: bool = False) -> Array:
        """[B, H, W, C] -> [B, H, W, F]; `of_pixel`: the window of pixels [columns, B, C] -> [B, F].

        Of one column, [..., C] -> [..., F] either way.
        """
        inputs, outputs = x.shape[-1], self.copies * self.features
        start = nn.initializers.zeros if self.zeros else nn.initializers.lecun_normal()
        kernel = self.param("kernel", start, (self.columns, inputs, outputs))
        bias = self.param("bias", self.bias_init, (outputs,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        mask = np.ones((self.columns, inputs, outputs), bool)
        mask[-1] = np.tile(group_mask(inputs, self.features, self.groups, self.strict), self.copies)
        if not mask.all():
            kernel = jnp.where(mask, kernel, 0)
        if self.columns == 1:
            y = x @ kernel[0]
        elif of_pixel:
            y = jnp.einsum("kbc,kcf->bf", x, kernel)
        else:
            y = conv(x, kernel[None], [(0, 0), (self.columns - 1, 0)])
        return y + broadcast(bias, y.shape)
