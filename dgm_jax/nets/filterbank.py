"""A grid of Gaussian filters over an image: attention to a window of any place and size, differentiable in both.

Filter (i, j) of N x N is centred at (mu_X^i, mu_Y^j), in pixels that count from 1 in an image of width A and height B:

    mu_X^i = g_X + (i - N/2 - 1/2) delta,          F_X[i, a] in proportion to exp(-(a - mu_X^i)^2 / 2 sigma^2) over a
    g_X = (A + 1)/2 (g~_X + 1),                    delta = (max(A, B) - 1)/(N - 1) delta~

and so in Y. Five numbers place a grid: g~_X, g~_Y, log sigma^2, log delta~ and log gamma, gamma the intensity; at
zeros it lies over the whole image. Every row of F_X and F_Y sums to one.

Everything is of one example; vmap over a batch. Gregor et al. 2015, arXiv 1502.04623, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.types import Array

NUMBERS = 5  # that place a grid


class Filters(NamedTuple):
    """A grid of N x N filters over an image of H x W pixels."""

    rows: Array  # F_Y [N, H]
    columns: Array  # F_X [N, W]
    intensity: Array  # gamma []


def place(numbers: Array, size: int, height: int, width: int) -> Filters:
    """The grid of size x size filters that the numbers [5] place (eqs. 19-26)."""
    x, y, log_variance, log_stride, log_intensity = numbers
    stride = (max(height, width) - 1) / max(size - 1, 1) * jnp.exp(log_stride)
    steps = jnp.arange(size) - (size - 1) / 2

    def bank(centre: Array, pixels: int) -> Array:
        means = (pixels + 1) / 2 * (centre + 1) + steps * stride
        distances = jnp.arange(1, pixels + 1)[None] - means[:, None]
        # a softmax: far outside of the image all the exponentials are 0, and so is the sum they are divided by
        return jax.nn.softmax(-0.5 * jnp.exp(-log_variance) * distances**2)

    return Filters(bank(y, height), bank(x, width), jnp.exp(log_intensity))


def read(filters: Filters, image: Array) -> Array:
    """gamma F_Y x F_X^T of each channel: [H, W, C] -> [N, N, C] (eq. 27)."""
    return filters.intensity * jnp.einsum("ih,hwc,jw->ijc", filters.rows, image, filters.columns)


def write(filters: Filters, patch: Array) -> Array:
    """F_Y^T w F_X / gamma of each channel: [N, N, C] -> [H, W, C] (eq. 29)."""
    return jnp.einsum("ih,ijc,jw->hwc", filters.rows, patch, filters.columns) / filters.intensity
