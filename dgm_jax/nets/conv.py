"""Convolutions that stay fast inside loops, and what goes with them: resampling and GroupNorm.

XLA's CPU compiler runs the backward pass of a convolution 30-40 times slower inside scan, while or cond than
outside of them: it recognises only forward convolutions there. So both gradients are written as forward
convolutions. They are the partial derivatives of one trilinear form,

    T(x, w, g) = <conv(x, w), g>:     conv = dT/dg,     input gradient = dT/dx,     weight gradient = dT/dw,

whose derivatives are again the three, so that derivatives of every order are convolutions of the fast kind.

In the weight gradient g is the kernel, as large as the image. On the CPU all of it is read again for every value of
the window: of a batch that the cache does not hold, the examples are taken a few at a time. Elsewhere it has
the form that JAX gives the derivative, which XLA's compilers for accelerators look for.

Arrays are channels-last: x [B, *spatial, C_in], kernels [*window, C_in, C_out]; any number of spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dgm_jax.nets.precision import broadcast, widened
from dgm_jax.types import Array

IN_CACHE = 2**16  # numbers: a quarter of a megabyte

Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], ...]
Ints = tuple[int, ...]
Pair = tuple[Array, Array]


def _native(x: Array, w: Array, pads: Pads, stride: Ints, dilation: Ints) -> Array:
    n = x.ndim - 2
    if any(size < k for size, k in zip(x.shape[1:-1], w.shape[:n], strict=True)):
        # an image smaller than the window is far slower on the CPU; the barrier keeps the padding apart
        edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
        x, pads = lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), edges)), ((0, 0),) * n
    return _plain(x, w, pads, stride, dilation)


def _plain(x: Array, w: Array, pads: Pads, stride: Ints, dilation: Ints) -> Array:
    n = x.ndim - 2
    image = (0, n + 1, *range(1, n + 1))
    numbers = lax.ConvDimensionNumbers(image, (n + 1, n, *range(n)), image)
    return lax.conv_general_dilated(x, w, stride, pads, rhs_dilation=dilation, dimension_numbers=numbers)


def _reach(w: Array, dilation: Ints) -> list[int]:
    """Distance between the first and the last pixel under the kernel, for each spatial axis."""
    return [(k - 1) * d for k, d in zip(w.shape[: w.ndim - 2], dilation, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, pads: Pads, dilation: Ints) -> Array:
    return _native(x, w, pads, (1,) * len(pads), dilation)


def _input_gradient(w: Array, g: Array, pads: Pads, dilation: Ints) -> Array:
    """dT/dx: g convolved with the flipped kernel, padded by what the forward padding left out."""
    n = len(pads)
    rest = tuple((r - low, r - high) for r, (low, high) in zip(_reach(w, dilation), pads, strict=True))
    return _conv(g, jnp.swapaxes(jnp.flip(w, range(n)), -1, -2), rest, dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _weight_gradient(x: Array, g: Array, pads: Pads, dilation: Ints) -> Array:
    """dT/dw, [*window, C_in, C_out]."""
    forms = {"cpu": _as_forward, "default": _as_derivative}
    return lax.platform_dependent(x, g, **{of: partial(form, pads, dilation) for of, form in forms.items()})


def _as_forward(pads: Pads, dilation: Ints, x: Array, g: Array) -> Array:
    """dT/dw: x convolved with g, the batch as channels; the window's dilation becomes the stride."""

    def of(x: Array, g: Array) -> Array:
        dw = _native(jnp.swapaxes(x, 0, -1), jnp.moveaxis(g, 0, -2), pads, dilation, (1,) * len(pads))
        return jnp.moveaxis(dw, 0, -2)

    size = _examples_at_once(g)
    if size == len(x):
        return of(x, g)
    parts = tuple(a.reshape(-1, size, *a.shape[1:]) for a in (x, g))
    like = jax.eval_shape(of, *(a[0] for a in parts))
    nothing = widened(jnp.zeros_like(like))
    return lax.scan(lambda sum, part: (sum + of(*part), None), nothing, parts)[0].astype(like.dtype)


def _as_derivative(pads: Pads, dilation: Ints, x: Array, g: Array) -> Array:
    """dT/dw, as JAX writes it."""
    window = [
        (size + low + high - out) // d + 1
        for size, out, (low, high), d in zip(x.shape[1:-1], g.shape[1:-1], pads, dilation, strict=True)
    ]
    like = jax.ShapeDtypeStruct((*window, x.shape[-1], g.shape[-1]), g.dtype)
    return jax.linear_transpose(lambda w: _plain(x, w, pads, (1,) * len(pads), dilation), like)(g)[0]


def _examples_at_once(g: Array) -> int:
    """So many of g's examples that they stay in a core's cache; a divisor of the batch."""
    most = IN_CACHE // max(1, math.prod(g.shape[1:]))
    return next(n for n in range(max(1, min(most, len(g))), 0, -1) if len(g) % n == 0)


def _conv_fwd(x: Array, w: Array, pads: Pads, dilation: Ints) -> tuple[Array, Pair]:
    return _conv(x, w, pads, dilation), (x, w)


def _conv_bwd(pads: Pads, dilation: Ints, residuals: Pair, g: Array) -> Pair:
    x, w = residuals
    return _input_gradient(w, g, pads, dilation), _weight_gradient(x, g, pads, dilation)


def _weight_gradient_fwd(x: Array, g: Array, pads: Pads, dilation: Ints) -> tuple[Array, Pair]:
    return _weight_gradient(x, g, pads, dilation), (x, g)


def _weight_gradient_bwd(pads: Pads, dilation: Ints, residuals: Pair, w: Array) -> Pair:
    x, g = residuals
    return _input_gradient(w, g, pads, dilation), _conv(x, w, pads, dilation)


_conv.defvjp(_conv_fwd, _conv_bwd)
_weight_gradient.defvjp(_weight_gradient_fwd, _weight_gradient_bwd)


def conv(x: Array, kernel: Array, padding: Padding = "SAME", dilation: Sequence[int] | None = None) -> Array:
    """Stride-1 convolution whose derivatives, in reverse mode and of every order, are fast inside loops.

    Args:
        x: [B, *spatial, C_in].
        kernel: [*window, C_in, C_out].
        padding: "SAME", "VALID", or (low, high) for each spatial axis.
        dilation: the kernel's, for each spatial axis; 1 by default.

    Returns:
        [B, *spatial', C_out], equal to `jax.lax.conv_general_dilated`.

    Raises:
        ValueError: an unknown padding.
    """
    n = x.ndim - 2
    dilation = (1,) * n if dilation is None else tuple(dilation)
    if padding == "SAME":
        padding = [(r // 2, r - r // 2) for r in _reach(kernel, dilation)]
    elif padding == "VALID":
        padding = [(0, 0)] * n
    elif isinstance(padding, str):
        raise ValueError(f"unknown padding {padding!r}; SAME, VALID or (low, high) for each axis")
    return _conv(x, kernel, tuple((low, high) for low, high in padding), dilation)


class Conv(nn.Module):
    """`flax.linen.Conv` at stride 1 through the loop-safe `conv`; parameters have flax's names, shapes and values."""

    features: int
    kernel_size: Sequence[int] = (3, 3)
    padding: Padding = "SAME"
    kernel_dilation: Sequence[int] | None = None
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Array] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [..., *spatial, C] -> [..., *spatial', features]."""
        n = len(self.kernel_size)
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        lead = x.shape[: -n - 1]
        y = conv(x.reshape(-1, *x.shape[-n - 1 :]), kernel, self.padding, self.kernel_dilation)
        if bias is not None:
            y = y + broadcast(bias, y.shape)
        return y.reshape(*lead, *y.shape[1:])


def space_to_depth(x: Array, block: int = 2) -> Array:
    """[..., H, W, C] -> [..., H / block, W / block, block^2 C]: every block x block patch becomes a pixel."""
    *lead, h, w, c = x.shape
    _check_divides(block, h, w)
    x = x.reshape(*lead, h // block, block, w // block, block, c)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, h // block, w // block, block * block * c)


def depth_to_space(x: Array, block: int = 2) -> Array:
    """[..., H, W, block^2 C] -> [..., block H, block W, C]: the inverse of `space_to_depth`."""
    *lead, h, w, c = x.shape
    _check_divides(block * block, c)
    x = x.reshape(*lead, h, w, block, block, c // (block * block))
    return jnp.swapaxes(x, -4, -3).reshape(*lead, h * block, w * block, c // (block * block))


def downsample(x: Array, block: int = 2) -> Array:
    """[..., H, W, C] -> [..., H / block, W / block, C] by the mean of every block x block patch."""
    *lead, h, w, c = x.shape
    _check_divides(block, h, w)
    return x.reshape(*lead, h // block, block, w // block, block, c).mean((-4, -2))


def upsample(x: Array, block: int = 2) -> Array:
    """[..., H, W, C] -> [..., block H, block W, C] by repeating every pixel."""
    *lead, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, h, block, w, block, c))
    return x.reshape(*lead, h * block, w * block, c)


class Upsample(nn.Module):
    """Convolutions of an image, each after the first at twice the size: [B, H, W, C] -> [B, 2^d H, 2^d W, features]."""

    features: int
    doublings: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Pixels are repeated, and convolved then: a transposed convolution is many times slower on the CPU."""
        h = nn.relu(Conv(self.features)(x))
        for _ in range(self.doublings):
            h = nn.relu(Conv(self.features)(upsample(h)))
        return h


def _check_divides(block: int, *sizes: int) -> None:
    if any(size % block for size in sizes):
        raise ValueError(f"sizes {sizes} cannot be divided by {block}")


class GroupNorm(nn.Module):
    """Group normalisation over space and the channels of a group: [B, ..., C] -> [B, ..., C] (Wu & He, 2018).

    Sums go by channel first and then by group: twice as fast as flax's, which reshapes x.
    """

    groups: int = 8
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, ..., C] -> the same shape and dtype; statistics are at least float32."""
        channels = x.shape[-1]
        _check_divides(self.groups, channels)
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        wide = widened(x)
        space = tuple(range(1, x.ndim - 1))

        def group_mean(channel: Array) -> Array:  # [B, C] -> [B, C], equal within a group
            mean = channel.reshape(-1, self.groups, channels // self.groups).mean(-1)
            return jnp.repeat(mean, channels // self.groups, axis=-1)

        mean = group_mean(wide.mean(space))
        variance = jnp.maximum(group_mean((wide * wide).mean(space)) - mean * mean, 0.0)
        gain = lax.rsqrt(variance + self.epsilon) * jnp.broadcast_to(scale, mean.shape)
        shift = jnp.broadcast_to(bias, mean.shape) - mean * gain
        return (wide * jnp.expand_dims(gain, space) + jnp.expand_dims(shift, space)).astype(x.dtype)
