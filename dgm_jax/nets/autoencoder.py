"""Convolutional encoders of images to vectors, and decoders back, plain or residual."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from dgm_jax.nets.conv import Conv, depth_to_space, downsample, upsample
from dgm_jax.nets.mlp import Dense, activation
from dgm_jax.nets.resnet import Block

GROUPS = 8  # of the norms in residual blocks, or the largest divisor of the channels below it


class ConvEncoder(nn.Module):
    """[B, H, W, C] -> [B, features]; every entry of `channels` halves height and width, then has `blocks`."""

    channels: Sequence[int]
    features: int
    activation: str
    blocks: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Values of the last, linear layer."""
        act = activation(self.activation)
        for channels in self.channels:
            x = downsample(act(Conv(channels)(x)))
            x = residual(x, self.blocks, self.activation)
        return Dense(self.features)(x.reshape(x.shape[0], -1))


class ConvDecoder(nn.Module):
    """[B, features] -> [B, *shape], shape = (H, W, C): the mirror image of ConvEncoder."""

    channels: Sequence[int]
    shape: tuple[int, ...]
    activation: str
    blocks: int = 0

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Values of the last, linear layer."""
        act = activation(self.activation)
        height, width, channels_out = self.shape
        scale = 2 ** len(self.channels)
        base = (height // scale, width // scale, self.channels[-1])
        x = act(Dense(math.prod(base))(z)).reshape(z.shape[0], *base)
        x = residual(x, self.blocks, self.activation)
        for channels in reversed(self.channels[:-1]):
            x = residual(act(Conv(channels)(upsample(x))), self.blocks, self.activation)
        # not upsample and Conv: pixels that were one would differ by what their neighbours differ by
        return depth_to_space(Conv(4 * channels_out)(x))


def residual(x: jax.Array, blocks: int, act: str) -> jax.Array:
    """So many residual blocks, inside a compact module."""
    for _ in range(blocks):
        x, _ = Block(act, math.gcd(GROUPS, x.shape[-1]))(x)
    return x
