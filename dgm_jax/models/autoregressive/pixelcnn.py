"""PixelCNN: residual blocks of masked convolutions.

    log p(x | c) = sum_ij sum_k log p(x_ijk | pixels before ij in raster order, x_ij<k, c)
    h_0 = Masked_7x7(x),   h' = h + W'' relu(Masked_3x3(relu(W' relu(h))) + c),   p(x_ijk | ...) = Output(MLP(h)_ijk)

The first convolution does not see the pixel itself (mask A), the others do (mask B); in colour images the features of
a pixel are parted among its channels, and those of one see those of the earlier ones. A masked convolution is the sum
of one over the rows above and one over the row up to the pixel.

References: van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import raster
from dgm_jax.models.images import image
from dgm_jax.models.options import odd_from
from dgm_jax.nets.causal import Above, Left, push, shift_down
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import broadcast
from dgm_jax.types import Array, Model, Params, PyTree

Conditions = Array | None  # [B, K]


class Network(nn.Module):
    """x [B, H, W, C], conditions [B, K] -> [B, H, W, C, size]."""

    channels: int  # of an image
    size: int
    features: int
    layers: int
    first: int
    kernel: int
    head_features: int
    dropout: float
    conditional: bool

    def setup(self) -> None:
        """The masked convolutions, in two parts each, the functions of single pixels around them, and the head."""
        f, groups = self.features, self.channels
        widths = [self.first] + [self.kernel] * self.layers
        wide = [2 * f] + [f] * self.layers
        self.up = [Above(n, width // 2, width, use_bias=False) for n, width in zip(wide, widths, strict=True)]
        self.side = [
            Left(n, width // 2 + 1, groups, strict=i == 0)
            for i, (n, width) in enumerate(zip(wide, widths, strict=True))
        ]
        self.condition = [Dense(n, use_bias=False) for n in wide] if self.conditional else []
        self.reduce = [Left(f, groups=groups) for _ in range(self.layers)]
        self.expand = [Left(2 * f, groups=groups) for _ in range(self.layers)]
        self.hidden_head = Left(self.head_features, groups=groups)
        self.head = Left(self.channels * self.size, groups=groups, zeros=True)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array, c: Conditions, deterministic: bool = True) -> Array:
        """What the outputs of all pixels are given."""

        def masked(i: int, a: Array) -> Array:
            return self.conditioned(i, self.up[i](shift_down(a)) + self.side[i](a), c)

        return self.blocks(x, masked, deterministic)

    def above(self, c: Conditions, windows: list[Array]) -> list[Array]:
        """What a row's pixels are given by the rows above, [rows, B, W, F] for each layer."""
        return [self.conditioned(i, self.up[i](rows, of_row=True), c) for i, rows in enumerate(windows)]

    def pixel(self, x: Array, given: list[Array], windows: list[Array]) -> tuple[Array, list[Array], list[Array]]:
        """One pixel.

        Args:
            x: the window of the first layer, [columns, B, C].
            given: for each layer what comes from above, [B, F].
            windows: of the other layers' values before this pixel, [columns, B, F].

        Returns:
            The outputs [B, C, size], the windows with this pixel, and its values [B, F] that the layers see.
        """
        moved, features = [], []

        def masked(i: int, a: Array) -> Array:
            if i > 0:
                features.append(a)
                a = push(windows[i - 1], a)
                moved.append(a)
            return given[i] + self.side[i](a, of_pixel=True)

        return self.blocks(x, masked, True), moved, features

    def conditioned(self, i: int, y: Array, c: Conditions) -> Array:
        """Layer i's values and what the conditions add, equal at all pixels."""
        if c is None:
            return y
        return y + broadcast(jnp.expand_dims(self.condition[i](c), range(1, y.ndim - 1)), y.shape)

    def blocks(self, x: Array, masked: Callable[[int, Array], Array], deterministic: bool) -> Array:
        """The net, given what makes masked convolution i of its input."""
        h = masked(0, x)
        for i in range(self.layers):
            a = masked(i + 1, nn.relu(self.reduce[i](nn.relu(h))))
            h = h + self.expand[i](self.drop(nn.relu(a), deterministic=deterministic))
        h = nn.relu(self.hidden_head(nn.relu(h)))
        return self.head(h).reshape(*h.shape[:-1], self.channels, self.size)


def make(
    *,
    shape: tuple[int, ...],
    features: int = 32,
    layers: int = 7,
    first: int = 7,
    kernel: int = 3,
    head: int = 64,
    output: str = "bernoulli",
    components: int = 10,
    levels: int = 256,
    dropout: float = 0.0,
    classes: int = 0,
    cond_size: int = 0,
    bf16: bool = False,
) -> Model:
    """PixelCNN over images.

    Args:
        shape: of an image, (H, W, C).
        features: inside a residual block; between blocks there are twice as many.
        layers: residual blocks.
        first: width of the first kernel: 3, 5, 7, ...
        kernel: width of the others, likewise.
        head: features of the layer before the last.
        output: distribution of a channel of a pixel, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        dropout: rate inside the residual blocks, where a key is given.
        classes: number of labels in batch["cond"]; 0 for none.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the net computes in bfloat16; parameters and likelihoods stay float32.

    Returns:
        init, log_prob, log_conditionals, predict, sample, complete.

    Raises:
        ValueError: no image, or another width.
    """
    odd_from(3, first=first, kernel=kernel)
    out = outputs.make(output, components=components, levels=levels)
    _, width, channels = image(shape)
    network = Network(
        channels, out.size, features, layers, first, kernel, head, dropout, conditional=bool(classes or cond_size)
    )

    def cached(params: Params, n: int, c: Conditions) -> raster.Cached:
        dtype = params["head"]["bias"].dtype

        def window(length: int, *inner: int) -> Array:
            return jnp.zeros((length, n, *inner), dtype)

        def above(windows: list[Array]) -> tuple[PyTree, PyTree]:
            given: Any = network.apply({"params": params}, c, windows, method="above")
            return windows, [jnp.swapaxes(a, 0, 1) for a in given]

        def pixel(windows: list[Array], given: list[Array], x: Array) -> tuple[PyTree, PyTree, Array]:
            found: Any = network.apply({"params": params}, x, given, windows, method="pixel")
            raw, windows, features = found
            return windows, features, raw

        def below(windows: list[Array], features: list[Array], x: Array) -> list[Array]:
            return [push(rows, jnp.swapaxes(a, 0, 1)) for rows, a in zip(windows, [x, *features], strict=True)]

        memory = [window(first // 2, width, channels)] + [window(kernel // 2, width, features)] * layers
        left = [window(kernel // 2 + 1, features)] * layers
        return raster.Cached(first // 2 + 1, memory, above, left, pixel, below)

    return raster.model(network, out, shape, cached, classes=classes, cond_size=cond_size, bf16=bf16)
