"""Residual convolutional networks that keep the resolution."""

from __future__ import annotations

import flax.linen as nn
import jax

from dgm_jax.nets.conv import Conv, GroupNorm
from dgm_jax.nets.mlp import activation


class Block(nn.Module):
    """h + convolutions of normalised activations of h, [B, H, W, width] (He et al. 2016, arXiv 1603.05027)."""

    act: str
    groups: int

    @nn.compact
    def __call__(self, h: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """The new h, and nothing to stack: the form of a scan's step."""
        act, width = activation(self.act), h.shape[-1]
        r = Conv(width)(act(GroupNorm(self.groups)(h)))
        return h + Conv(width)(act(GroupNorm(self.groups)(r))), None


class ResNet(nn.Module):
    """[B, H, W, C] -> [B, H, W, features]; the last layer starts at zero."""

    features: int
    width: int = 32
    blocks: int = 2
    act: str = "relu"
    groups: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Values of the last layer."""
        h = trunk(x, self.width, self.blocks, self.act, self.groups)
        return Conv(self.features, kernel_init=nn.initializers.zeros)(h)


def trunk(x: jax.Array, width: int, blocks: int, act: str, groups: int) -> jax.Array:
    """A convolution and residual blocks, inside a compact module: normalised activations [B, H, W, width]."""
    h = Conv(width)(x)
    if blocks:
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=blocks)
        h, _ = stack(act, groups, name="blocks")(h, None)
    return activation(act)(GroupNorm(groups)(h))
