"""Dense layers with masked kernels, and the masks of MADE as comparisons of degrees.

The degree of an input is its place 0..D-1 in the order; a hidden unit of degree m sees the inputs of places
<= m; the output of place p sees the hidden units of degrees < p. Germain et al. 2015, arXiv 1502.03509,
equations 12 and 13, counted from zero. A mask is made from two vectors where it is used, so that n
connectivities cost n vectors a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.nets.precision import broadcast


def made_degrees(rng: np.random.Generator, dims: int, hidden: Sequence[int], natural: bool) -> list[np.ndarray]:
    """Draws the degrees of the inputs, then of every hidden layer: int32 [dims], [hidden[0]], ...

    A hidden degree is uniform from the least degree of the layer below, so that no unit is cut off, to
    dims - 2, above which no output would read it (section 4.2 of the paper). `natural` keeps the inputs in
    their own order.
    """
    degrees = [np.arange(dims) if natural else rng.permutation(dims)]
    lowest = 0
    for width in hidden:
        degrees.append(rng.integers(lowest, max(dims - 1, lowest + 1), size=width))
        lowest = int(degrees[-1].min())
    return [d.astype(np.int32) for d in degrees]


def hidden_mask(below: jax.Array, above: jax.Array) -> jax.Array:
    """bool [below, above]: which units of the layer above see which of the layer below."""
    return below[:, None] <= above[None, :]


def output_mask(below: jax.Array, above: jax.Array) -> jax.Array:
    """bool [below, above]: the same for outputs, which see strictly earlier places only."""
    return below[:, None] < above[None, :]


class MaskedDense(nn.Module):
    """x @ (kernel * mask) + bias; the mask [inputs, features] is an argument, not a parameter."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x @ jnp.where(mask, kernel, 0)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + broadcast(bias, y.shape)
