"""PixelRNN: residual layers of Row LSTMs or Diagonal BiLSTMs.

    log p(x | c) = sum_ij sum_k log p(x_ijk | pixels before ij in raster order, x_ij<k, c)
    h_0 = Masked_7x7(x) + c,   h' = h + W LSTM(input-to-state(h) + c),   p(x_ijk | ...) = Output(MLP(h)_ijk)

The first convolution does not see the pixel itself (mask A), what follows does (mask B). A layer of Diagonal BiLSTMs
sees all earlier pixels, but for the last one of the row above where the first convolution does not reach it: no
feature before the next row holds it. Row LSTMs see a triangle above. The LSTMs are in nets.lstm; in colour images the
features of a pixel are parted among its channels as in PixelCNN, for which state-to-state needs no mask: it sees
other pixels only.

References: van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import raster
from dgm_jax.models.images import image
from dgm_jax.models.options import at_least, odd_from
from dgm_jax.nets import lstm
from dgm_jax.nets.causal import Above, Left, push, shift_down
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import broadcast
from dgm_jax.types import Array, Model, Params, PyTree

Conditions = Array | None  # [B, K], the same at all pixels, or [B, H, W, K]


class Network(nn.Module):
    """x [B, H, W, C], conditions [B, K] or [B, H, W, K] -> [B, H, W, C, size]."""

    channels: int  # of an image
    size: int
    recurrence: lstm.Recurrence
    features: int
    layers: int
    first: int
    head_features: int
    dropout: float
    conditional: bool

    def setup(self) -> None:
        """The first convolution in two parts, the LSTMs and the functions of single pixels around them, the head."""
        f, groups, (directions, neighbours, columns, *_) = self.features, self.channels, self.recurrence
        self.up = Above(2 * f, self.first // 2, self.first, use_bias=False)
        self.side = Left(2 * f, self.first // 2 + 1, groups, strict=True)
        # the order of gates is o, f, i, g in each direction; the forget gates start open, as in `rnn.LSTM`
        remember = nn.initializers.constant(jnp.tile(jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), f), directions))
        self.input = [Left(f, columns, groups, copies=4 * directions, bias_init=remember) for _ in range(self.layers)]
        start = nn.initializers.lecun_normal(batch_axis=(0, 1))
        self.recurrent = self.param("recurrent", start, (self.layers, directions, neighbours * f, 4 * f))
        self.expand = [Left(2 * f, groups=groups) for _ in range(self.layers)]
        wide = [2 * f] + [4 * directions * f] * self.layers
        self.condition = [Dense(n, use_bias=False) for n in wide] if self.conditional else []
        self.hidden_head = Left(self.head_features, groups=groups)
        self.head = Left(self.channels * self.size, groups=groups, zeros=True)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array, c: Conditions, deterministic: bool = True) -> Array:
        """What the outputs of all pixels are given."""
        if c is not None:
            c = (c if c.ndim == 4 else c[:, None, None]).astype(x.dtype)
        first, *added = self.added(c)

        def recur(i: int, h: Array) -> Array:
            gates = plus(self.input[i](h), added[i])
            return jnp.moveaxis(self.recurrence.image(self.recurrent[i], jnp.moveaxis(gates, 0, 2)), 2, 0)

        return self.blocks(plus(self.up(shift_down(x)) + self.side(x), first), recur, deterministic)

    def above(self, rows: Array, memory: PyTree, c: Conditions) -> PyTree:
        """What a row's pixels are given by the rows above and the conditions, [W, B, ...].

        Args:
            rows: the window of the first layer, [rows, B, W, C].
            memory: of the LSTMs, [W, layers, B, F].
            c: [1, B, K] or [W, B, K].
        """
        h = jnp.swapaxes(self.up(rows, of_row=True), 0, 1)
        first, *added = (a if a is None else jnp.broadcast_to(a, (h.shape[0], *a.shape[1:])) for a in self.added(c))
        return plus(h, first), added, jax.vmap(self.recurrence.above, (0, 1), 1)(self.recurrent, memory)

    def pixel(self, x: Array, given: PyTree, left: PyTree) -> tuple[Array, PyTree, PyTree]:
        """One pixel.

        Args:
            x: the window of the first layer, [columns, B, C].
            given: by `above`.
            left: of the other layers before this pixel, the windows [columns, B, 2 F] and what the LSTMs left.

        Returns:
            The outputs [B, C, size], `left` with this pixel, and the LSTMs' features of it, [layers, B, ...].
        """
        first, added, from_above = given
        moved, features = [], []

        def recur(i: int, h: Array) -> Array:
            window, state = left[i]
            window = push(window, h)
            # of one column, Left takes the pixel itself
            gates = self.input[i](window if self.recurrence.columns > 1 else h, of_pixel=True)
            there = jax.tree.map(lambda a: a[i], from_above)
            state, kept, y = self.recurrence.pixel(self.recurrent[i], state, there, plus(gates, added[i]))
            moved.append((window, state))
            features.append(kept)
            return y

        raw = self.blocks(first + self.side(x, of_pixel=True), recur, True)
        return raw, moved, jax.tree.map(lambda *leaves: jnp.stack(leaves), *features)

    def below(self, memory: PyTree, features: PyTree) -> PyTree:
        """The LSTMs' memory of a completed row, from that of the row above and the features of its pixels."""
        return jax.vmap(self.recurrence.below, (0, 1, 1), 1)(self.recurrent, memory, features)

    def added(self, c: Conditions) -> list[Array | None]:
        """What the conditions add to the first layer, and to the gates of the others."""
        return [None] * (1 + self.layers) if c is None else [layer(c) for layer in self.condition]

    def blocks(self, h: Array, recur: Callable[[int, Array], Array], deterministic: bool) -> Array:
        """The net after its first convolution, given what makes LSTM i of its input."""
        for i in range(self.layers):
            h = h + self.expand[i](self.drop(recur(i, h), deterministic=deterministic))
        h = nn.relu(self.hidden_head(nn.relu(h)))
        return self.head(h).reshape(*h.shape[:-1], self.channels, self.size)


def plus(y: Array, there: Array | None) -> Array:
    """The sum with what may not be there."""
    return y if there is None else y + broadcast(there, y.shape)


def net(
    shape: tuple[int, ...],
    size: int,
    conditional: bool,
    *,
    kind: str,
    features: int,
    layers: int,
    first: int,
    kernel: int,
    head: int,
    dropout: float,
) -> tuple[Network, Callable[[Params, int, Conditions], raster.Cached]]:
    """The network of images whose channels are given `size` numbers, and how it is computed a pixel at a time.

    The other arguments are those of `make`.

    Raises:
        ValueError: no image, no layers, or another width of a kernel.
    """
    at_least(1, layers=layers)
    odd_from(3, first=first)
    odd_from(1, kernel=kernel)
    _, width, channels = image(shape)
    recurrence = lstm.make(kind, kernel)
    network = Network(channels, size, recurrence, features, layers, first, head, dropout, conditional)

    def cached(params: Params, n: int, c: Conditions) -> raster.Cached:
        def zeros(*shape: int) -> Array:
            return jnp.zeros(shape, params["head"]["bias"].dtype)

        def above(memory: tuple[Array, Array, PyTree]) -> tuple[PyTree, PyTree]:
            i, rows, states = memory
            there = c
            if c is not None:
                there = jnp.swapaxes(c[:, i], 0, 1) if c.ndim == 4 else c[None]
            return memory, network.apply({"params": params}, rows, states, there, method="above")

        def pixel(left: PyTree, given: PyTree, x: Array) -> tuple[PyTree, PyTree, Array]:
            found: Any = network.apply({"params": params}, x, given, left, method="pixel")
            raw, left, features = found
            return left, features, raw

        def below(memory: tuple[Array, Array, PyTree], features: PyTree, x: Array) -> PyTree:
            i, rows, states = memory
            states = network.apply({"params": params}, states, features, method="below")
            return i + 1, push(rows, jnp.swapaxes(x, 0, 1)), states

        states = (zeros(width, layers, n, features),) * 2
        memory = jnp.zeros((), int), zeros(first // 2, n, width, channels), states
        left = zeros(recurrence.columns, n, 2 * features), (zeros(n, features),) * recurrence.left
        return raster.Cached(first // 2 + 1, memory, above, [left] * layers, pixel, below)

    return network, cached


def make(
    *,
    shape: tuple[int, ...],
    kind: str = "diagonal",
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
    """PixelRNN over images.

    Args:
        shape: of an image, (H, W, C).
        kind: of LSTM, "row" or "diagonal".
        features: of an LSTM in each direction; between layers there are twice as many.
        layers: of LSTMs.
        first: width of the first kernel: 3, 5, 7, ...
        kernel: width of the Row LSTM's convolutions, odd.
        head: features of the layer before the last.
        output: distribution of a channel of a pixel, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        dropout: rate of what the LSTMs put out, where a key is given.
        classes: number of labels in batch["cond"]; 0 for none.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the net computes in bfloat16; parameters and likelihoods stay float32.

    Returns:
        init, log_prob, log_conditionals, predict, sample, complete.
    """
    out = outputs.make(output, components=components, levels=levels)
    network, cached = net(
        shape,
        out.size,
        bool(classes or cond_size),
        kind=kind,
        features=features,
        layers=layers,
        first=first,
        kernel=kernel,
        head=head,
        dropout=dropout,
    )
    return raster.model(network, out, shape, cached, classes=classes, cond_size=cond_size, bf16=bf16)
