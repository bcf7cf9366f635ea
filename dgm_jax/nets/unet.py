"""A small U-Net for images of 8x8 to 32x32, conditional on a time and on a class label.

Residual blocks of GroupNorm, SiLU and convolution, with the embedding of time and label as a scale and shift
(FiLM) of the second norm; self-attention at the lowest resolution; averages down, nearest neighbours up. The
last convolution of every block and of the net starts at 0: the blocks as identities, the net as 0.

References: Ronneberger et al. 2015, arXiv 1505.04597; Ho et al. 2020, arXiv 2006.11239; Dhariwal & Nichol
2021, arXiv 2105.05233 (FiLM).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.nets.conv import Conv, GroupNorm, downsample, upsample
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import broadcast
from dgm_jax.types import Array

zeros = nn.initializers.zeros_init()


def fourier_features(t: Array, features: int, longest: float = 1e4) -> Array:
    """Cosines and sines of t at features / 2 frequencies from 1 to 1 / longest: [B] -> [B, features]."""
    half = features // 2
    frequencies = jnp.exp(-math.log(longest) * jnp.arange(half, dtype=t.dtype) / half)
    angles = t[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ResidualBlock(nn.Module):
    """Two convolutions around the identity, or around a 1x1 convolution where the channels change."""

    channels: int
    groups: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, embedding: Array, deterministic: bool) -> Array:
        """x [B, H, W, C], embedding [B, E] -> [B, H, W, channels]."""
        film = Dense(2 * self.channels)(nn.silu(embedding))
        h = Conv(self.channels)(nn.silu(GroupNorm(math.gcd(self.groups, x.shape[-1]))(x)))
        film = broadcast(jnp.expand_dims(film, (1, 2)), (*h.shape[:-1], 2 * self.channels))
        scale, shift = jnp.split(film, 2, axis=-1)
        h = nn.silu(GroupNorm(self.groups)(h) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        h = Conv(self.channels, kernel_init=zeros)(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, (1, 1))(x)
        return x + h


class SelfAttention(nn.Module):
    """Residual self-attention over all pixels: [B, H, W, C] -> the same."""

    groups: int
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> the same shape."""
        b, h, w, c = x.shape
        flat = GroupNorm(self.groups)(x).reshape(b, h * w, c)
        q, k, v = jnp.split(Dense(3 * c)(flat).reshape(b, h * w, self.heads, -1), 3, axis=-1)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        return x + Dense(c, kernel_init=zeros)(mixed)


class UNet(nn.Module):
    """(x [B, H, W, C], t [B] in [0, 1], label [B] or None) -> [B, H, W, features].

    Every entry of `multipliers` is a level of `blocks` residual blocks with that many times `channels`; H and
    W are halved between levels, and must allow it. Dropout needs `rngs={"dropout": key}` when not
    deterministic. The label must be given if there are classes.
    """

    features: int
    channels: int = 32
    multipliers: Sequence[int] = (1, 2)
    blocks: int = 1
    attention: bool = True
    heads: int = 1
    groups: int = 8
    dropout: float = 0.0
    classes: int = 0
    remat: bool = False  # the backward pass computes the blocks again

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, *, deterministic: bool = True) -> Array:
        """The net's output at time t."""
        width = 4 * self.channels
        time = fourier_features(1000 * t, self.channels)
        embedding = Dense(width)(nn.silu(Dense(width)(time)))
        if self.classes:
            embedding = embedding + nn.Embed(self.classes, width)(label)
        embedding = embedding.astype(x.dtype)
        residual_block = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        numbers = itertools.count()

        def block(x: Array, channels: int) -> Array:
            name = f"ResidualBlock_{next(numbers)}"  # with and without `remat`
            return residual_block(channels, self.groups, self.dropout, name=name)(x, embedding, deterministic)

        widths = [self.channels * m for m in self.multipliers]
        last = len(widths) - 1
        h = Conv(self.channels)(x)
        skips = []
        for level, channels in enumerate(widths):
            for _ in range(self.blocks):
                h = block(h, channels)
                skips.append(h)
            if level < last:
                h = downsample(h)
        h = block(h, widths[-1])
        if self.attention:
            h = SelfAttention(self.groups, self.heads)(h)
        for level, channels in reversed(list(enumerate(widths))):
            for _ in range(self.blocks):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), channels)
            if level > 0:
                h = Conv(channels)(upsample(h))
        return Conv(self.features, kernel_init=zeros)(nn.silu(GroupNorm(self.groups)(h)))
