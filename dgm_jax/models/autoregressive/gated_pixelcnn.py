"""Gated PixelCNN: a stack of features from the rows above and one from the left, without a blind spot.

    log p(x | c) = sum_ij sum_k log p(x_ijk | pixels before ij in raster order, x_ij<k, c)
    v' = gate(Above(v) + c),   h' = h + R gate(Left(h) + N Above(v) + c),   gate(a, b) = tanh(a) sigmoid(b)

The first layer of v sees the rows strictly above, that of h the pixels strictly to the left and, in colour images,
the earlier channels. The features of h are parted among the channels as in PixelCNN. Grey levels are read as numbers,
codes, whose order means nothing, as vectors that are learned. Unlike the paper's, the first layer is told the row and
the column: zeros around an image that is black at its edges would show no border. Conditions are the same at all
pixels; or a map of features of every pixel (`pixel_vae`); or a smaller map of codes (`two_stage`), which a net
upsamples to such features.

References: van den Oord et al. 2016, arXiv 1606.05328; conditional on a map: Razavi et al. 2019, arXiv 1906.00446.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import raster
from dgm_jax.models.images import image
from dgm_jax.models.options import at_least, odd_from
from dgm_jax.nets.causal import Above, Left, push, shift_down
from dgm_jax.nets.conv import Upsample
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import broadcast, widened
from dgm_jax.types import Array, Model, Params, PyTree

Conditions = Array | None  # [B, K], or a map [B, H, W, K], or of codes [B, h, w, K], upsampled [B, H, W, context]
GAIN = 2.0  # of the vertical stack's kernels: a gate halves small values, and no connection goes past it


class Network(nn.Module):
    """x [B, H, W, C], conditions [B, K], [B, H, W, K] or [B, h, w, K] -> [B, H, W, C, size]."""

    shape: tuple[int, int, int]  # of an image
    size: int
    features: int
    layers: int
    first: int
    kernel: int
    head_features: int
    dropout: float
    conditional: bool
    doublings: int = 0  # from a map to the image
    context: int = 0  # features of every pixel that a map is upsampled to; 0 for none
    codes: int = 0  # how many there are, where x holds 1 + a code for each channel, and 0 where nothing is known
    embedding: int = 0  # features of a code

    def setup(self) -> None:
        """A vertical and a horizontal layer each, what joins them, and the head."""
        kernels = [self.first] + [self.kernel] * (self.layers - 1)
        (height, width, groups), f = self.shape, self.features
        # the first sees x moved down by a row, so that the row of its output is the last one above the pixel
        self.vertical = [Above(2 * f, k // 2 + (i > 0), k, gain=GAIN) for i, k in enumerate(kernels)]
        self.join = [Dense(2 * f) for _ in kernels]
        self.horizontal = [Left(f, k // 2 + 1, groups, i == 0, copies=2) for i, k in enumerate(kernels)]
        self.residual = [Left(f, groups=groups) for _ in kernels]
        self.rows = self.param("rows", nn.initializers.zeros, (height, 2 * f))
        self.columns = self.param("columns", nn.initializers.zeros, (width, 2 * f))
        self.condition = [Dense(4 * f, use_bias=False) for _ in kernels] if self.conditional else []
        self.upsample = Upsample(self.context, self.doublings) if self.context else None
        self.embed = nn.Embed(self.codes, self.embedding) if self.embedding else None
        self.hidden_head = Left(self.head_features, groups=groups)
        self.head = Left(groups * self.size, groups=groups, zeros=True)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array, c: Conditions, deterministic: bool = True) -> Array:
        """What the outputs of all pixels are given."""
        from_above, _ = self.above(shift_down(x), self.spread(c))
        return self.left(x, from_above, deterministic=deterministic)[0]

    def vectors(self, x: Array) -> Array:
        """[..., C] -> [..., C embedding], zero where nothing is known; grey levels are as they are."""
        if self.embed is None:
            return x
        known = x[..., None] > 0
        table = widened(self.embed.embedding)  # whose gradient is a sum over pixels
        vectors = jnp.where(known, table[jnp.maximum(x - 1, 0).astype(int)], 0).astype(x.dtype)
        return vectors.reshape(*x.shape[:-1], -1)

    def spread(self, c: Conditions) -> Conditions:
        """Conditions as `above` takes them."""
        return c if c is None or self.upsample is None else self.upsample(c)

    def above(
        self, v: Array, c: Conditions, windows: list[Array] | None = None, row: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        """What each horizontal layer is given, [B, H, W, 2 F], and nothing.

        Or of the row with that index, v [B, W, C] being the one above: [B, W, 2 F], and the windows of each layer
        [rows, B, W, F]; of a map, c is that row.
        """
        given, moved, v = [], [], self.vectors(v)
        rows = self.rows[:, None] if windows is None else self.rows[row]
        for i, layer in enumerate(self.vertical):
            if windows is not None:
                v = push(windows[i], v)
                moved.append(v)
            a = layer(v, of_row=windows is not None)
            if i == 0:
                a = a + broadcast(rows, a.shape) + broadcast(self.columns, a.shape)
            joined = self.join[i](a)
            if c is not None:
                # of a map as rows: the gradient of a product with four axes is far slower on the CPU
                there = self.condition[i](c.reshape(-1, c.shape[-1])).reshape(*c.shape[:-1], -1)
                there = jnp.expand_dims(there, range(1, 1 + a.ndim - there.ndim))
                to_a, to_joined = jnp.split(there, 2, axis=-1)
                a, joined = a + broadcast(to_a, a.shape), joined + broadcast(to_joined, a.shape)
            given.append(joined)
            v = gate(a)
        return given, moved

    def left(
        self, h: Array, given: list[Array], windows: list[Array] | None = None, deterministic: bool = True
    ) -> tuple[Array, list[Array]]:
        """The outputs of all pixels, x [B, H, W, C] -> [B, H, W, C, size], and nothing.

        Or of one pixel: x is the window of the first layer, [columns, B, C], `windows` those of the others before
        this pixel; the outputs [B, C, size], and the windows with it.
        """
        moved: list[Array] = []
        h = self.vectors(h)
        for i, layer in enumerate(self.horizontal):
            seen = h
            if windows is not None and i > 0:
                seen = push(windows[i - 1], h)
                moved.append(seen)
            g = gate(layer(seen, of_pixel=windows is not None) + given[i])
            g = self.residual[i](self.drop(g, deterministic=deterministic))
            h = g if i == 0 else h + g
        h = nn.relu(self.hidden_head(nn.relu(h)))
        return self.head(h).reshape(*h.shape[:-1], self.shape[-1], self.size), moved


def gate(x: Array) -> Array:
    """[..., 2 F] -> [..., F]."""
    a, b = jnp.split(x, 2, axis=-1)
    return nn.tanh(a) * nn.sigmoid(b)


def make(
    *,
    shape: tuple[int, ...],
    features: int = 64,
    layers: int = 7,
    first: int = 7,
    kernel: int = 3,
    head: int = 128,
    output: str = "bernoulli",
    components: int = 10,
    levels: int = 256,
    embedding: int = 0,
    dropout: float = 0.0,
    classes: int = 0,
    cond_size: int = 0,
    cond_map: int = 0,
    map_codes: int = 0,
    map_scale: int = 2,
    context: int = 64,
    bf16: bool = False,
) -> Model:
    """Gated PixelCNN over images.

    Args:
        shape: of an image, (H, W, C).
        features: of each stack.
        layers: of each stack, at least one.
        first: width of the first layer's kernel: 3, 5, 7, ...
        kernel: width of the others, likewise.
        head: features of the layer before the last.
        output: distribution of a channel of a pixel, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        embedding: length of the vectors that stand for the levels of a categorical output, for codes; 0: the net
            reads them as numbers.
        dropout: rate inside the residual connections, where a key is given.
        classes: number of labels in batch["cond"]; 0 for none.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        cond_map: K, of maps of features in batch["cond"], [B, H, W, K]; 0 for none.
        map_codes: how many codes the map in batch["cond"], [B, H / map_scale, W / map_scale], has; 0 for none.
        map_scale: 1, 2, 4, 8, ...
        context: features of every pixel that the map is upsampled to.
        bf16: the net computes in bfloat16; parameters and likelihoods stay float32.

    Returns:
        init, log_prob, log_conditionals, predict, sample, complete.

    Raises:
        ValueError: a map besides another condition, or a scale of it that is no power of 2; vectors for what is not
            categorical, or for more codes than bfloat16 can count; no layers, or another width of a kernel.
    """
    if sum(map(bool, (map_codes, cond_map, classes or cond_size))) > 1:
        raise ValueError(f"a model is conditional on one of {map_codes=}, {cond_map=}, {classes=}, {cond_size=}")
    at_least(1, layers=layers)
    odd_from(3, first=first, kernel=kernel)
    if map_scale < 1 or map_scale & (map_scale - 1):
        raise ValueError(f"map_scale is 1, 2, 4, 8, ...; not {map_scale}")
    if embedding and (output != "categorical" or (bf16 and levels > 256)):
        raise ValueError(
            f"{embedding=} is of a categorical output, in bf16 of up to 256 levels; not {output=}, {levels=}"
        )
    out = outputs.make(output, components=components, levels=levels)
    if embedding:
        out = out._replace(read=lambda x: x + 1)
    height, width, channels = image(shape)
    network = Network(
        (height, width, channels),
        out.size,
        features,
        layers,
        first,
        kernel,
        head,
        dropout,
        conditional=bool(classes or cond_size or cond_map or map_codes),
        doublings=map_scale.bit_length() - 1,
        context=context if map_codes else 0,
        codes=levels if embedding else 0,
        embedding=embedding,
    )

    def cached(params: Params, n: int, c: Conditions) -> raster.Cached:
        dtype = params["head"]["bias"].dtype
        spread: Any = network.apply({"params": params}, c, method="spread")

        def window(rows: int, *inner: int) -> Array:
            return jnp.zeros((rows, n, *inner), dtype)

        def above(memory: tuple[Array, Array, list[Array]]) -> tuple[PyTree, PyTree]:
            i, row, windows = memory
            there = spread[:, i] if cond_map or map_codes else spread
            found: Any = network.apply({"params": params}, row, there, windows, i, method="above")
            given, windows = found
            return (i, row, windows), [jnp.swapaxes(a, 0, 1) for a in given]

        def pixel(windows: list[Array], given: list[Array], x: Array) -> tuple[PyTree, PyTree, Array]:
            found: Any = network.apply({"params": params}, x, given, windows, method="left")
            raw, windows = found
            return windows, (), raw

        def below(memory: tuple[Array, Array, list[Array]], features: PyTree, x: Array) -> PyTree:
            i, _, windows = memory
            return i + 1, jnp.swapaxes(x, 0, 1), windows

        first_rows = window(first // 2, width, channels * (embedding or 1))
        other_rows = [window(kernel // 2 + 1, width, features) for _ in range(layers - 1)]
        memory = jnp.zeros((), int), jnp.zeros((n, width, channels), dtype), [first_rows, *other_rows]
        left = [window(kernel // 2 + 1, features) for _ in range(layers - 1)]
        return raster.Cached(first // 2 + 1, memory, above, left, pixel, below)

    return raster.model(
        network,
        out,
        shape,
        cached,
        classes=classes,
        cond_size=cond_size,
        bf16=bf16,
        cond_map=cond_map,
        map_codes=map_codes,
    )
