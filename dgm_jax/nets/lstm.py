"""LSTMs over images in raster order, written so that a pixel can also be computed alone.

    o, f, i, g = input-to-state(x) + state-to-state(h')
    c = sigmoid(f) c' + sigmoid(i) tanh(g),   h = sigmoid(o) tanh(c)

Row LSTM: from row to row; h' are the pixels around this one in the row above, c' is that of the pixel above.
Diagonal BiLSTM: h' are the pixels to the left and above, c' is that of the pixel to the left. A second one goes from
right to left; its output is moved down by a row, so that no pixel sees its own row to the right.

Here is what comes after input-to-state, which sees a pixel and, in the Row LSTM, those to its left. Images are
[H, W, B, .], rows [W, B, .], pixels [B, .]; F features have 4 F gates, in the order o, f, i, g.

References: van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759, sections 3.1-3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.nets.precision import widened
from dgm_jax.nets.rnn import Pair, cell
from dgm_jax.types import Array, PyTree


class Recurrence(NamedTuple):
    """One layer; `kernel` is [directions, neighbours * F, 4 F]."""

    directions: int  # each has gates of its own
    neighbours: int  # pixels that state-to-state sees
    columns: int  # that input-to-state sees, the pixel's own included
    left: int  # arrays [B, F] that a pixel leaves to the one on its right
    image: Callable[[Array, Array], Array]  # (kernel, gates [H, W, B, directions * 4 F]) -> the output [H, W, B, F]
    # (kernel, memory of the row above: two of [W, B, F]) -> what the row's pixels are given
    above: Callable[[Array, Pair], PyTree]
    # (kernel, left, from above, gates [B, directions * 4 F]) -> (left with this pixel, features, its output [B, F])
    pixel: Callable[[Array, tuple, PyTree, Array], tuple[tuple, PyTree, Array]]
    # (kernel, memory of the row above, the features of a row's pixels) -> memory of this row
    below: Callable[[Array, Pair, PyTree], Pair]


def make(kind: str, kernel: int) -> Recurrence:
    """A recurrence by its name; `kernel` is the width of the Row LSTM's convolutions, odd.

    Raises:
        ValueError: an unknown name.
    """
    kinds = {"row": lambda: row(kernel), "diagonal": diagonal}
    if kind not in kinds:
        raise ValueError(f"unknown kind of LSTM {kind!r}; there are {', '.join(kinds)}")
    return kinds[kind]()


def row(width: int) -> Recurrence:
    """The Row LSTM, its convolutions being so wide."""

    def image(kernel: Array, gates: Array) -> Array:
        shared = widened(kernel[0])  # whose gradient is a sum over steps

        def step(state: Pair, gates: Array) -> tuple[Pair, Array]:
            h, c = state
            state = cell(gates + around(h, width) @ shared.astype(h.dtype), c)
            return state, state[0]

        return jax.lax.scan(remat(step), zeros(gates[0]), gates)[1]

    def above(kernel: Array, memory: Pair) -> Pair:
        h, c = memory
        return around(h, width) @ kernel[0], c

    def pixel(kernel: Array, left: tuple, given: Pair, gates: Array) -> tuple[tuple, Pair, Array]:
        recurrent, c = given
        state = cell(gates + recurrent, c)
        return left, state, state[0]

    def below(kernel: Array, memory: Pair, features: Pair) -> Pair:
        return features

    return Recurrence(1, width, width // 2 + 1, 0, image, above, pixel, below)


def diagonal() -> Recurrence:
    """The Diagonal BiLSTM."""

    def image(kernel: Array, gates: Array) -> Array:
        rightward, leftward = jnp.split(gates, 2, axis=-1)
        both = jnp.stack([rightward, leftward[:, ::-1]])
        abreast = images_abreast(both.shape[3])

        def run(abreast: int) -> Callable[[Array, Array], Array]:
            return jax.vmap(lambda kernel, gates: diagonals(kernel, gates, abreast))

        if abreast > 1:
            h, back = jax.lax.platform_dependent(kernel, both, cpu=run(abreast), default=run(1))
        else:
            h, back = run(1)(kernel, both)
        return h + down(back[:, ::-1])

    def above(kernel: Array, memory: Pair) -> Pair:
        h, back = memory
        return h @ kernel[0, h.shape[-1] :], back

    def pixel(kernel: Array, left: tuple, given: Pair, gates: Array) -> tuple[tuple, Pair, Array]:
        (h, c), (recurrent, back) = left, given
        rightward, leftward = jnp.split(gates, 2, axis=-1)
        h, c = cell(rightward + recurrent + h @ kernel[0, : h.shape[-1]], c)
        return (h, c), (h, leftward), h + back

    def below(kernel: Array, memory: Pair, features: Pair) -> Pair:
        (_, back), (h, leftward) = memory, features
        from_right, from_above = jnp.split(kernel[1], 2)

        def step(state: Pair, gates: Array) -> tuple[Pair, Array]:
            back, c = state
            state = cell(gates + back @ from_right, c)
            return state, state[0]

        gates = leftward + back @ from_above
        return h, jax.lax.scan(step, zeros(gates[0]), gates, reverse=True)[1]

    return Recurrence(2, 2, 1, 2, image, above, pixel, below)


def diagonals(kernel: Array, gates: Array, abreast: int = 1) -> Array:
    """The LSTM from left to right, a diagonal at a time: kernel [2 F, 4 F], gates [H, W, B, 4 F] -> [H, W, B, F].

    With so many images of the batch laid `abreast` there are as many times the steps, and fewer of the corners that are
    computed for nothing.
    """
    height, width, batch, wide = gates.shape
    gates = gates.reshape(height, width, abreast, batch // abreast, wide)
    gates = jnp.swapaxes(gates, 1, 2).reshape(height, abreast * width, batch // abreast, wide)
    first = jnp.broadcast_to(jnp.arange(abreast * width) % width == 0, gates.shape[:2])  # of a row: nothing to its left

    shared = widened(kernel)  # whose gradient is a sum over steps

    def step(state: Pair, at: Pair) -> tuple[Pair, Array]:
        (h, c), (gates, first) = state, at
        left = jnp.where(first, 0, h)
        h, c = cell(gates + jnp.concatenate([left, down(h)], axis=-1) @ shared.astype(h.dtype), jnp.where(first, 0, c))
        return (h, c), h

    columns = (jnp.swapaxes(skew(x), 0, 1) for x in (gates, first[..., None, None]))
    _, h = jax.lax.scan(remat(step), zeros(gates[:, 0]), tuple(columns))
    h = unskew(jnp.swapaxes(h, 0, 1), abreast * width).reshape(height, abreast, width, batch // abreast, wide // 4)
    return jnp.swapaxes(h, 1, 2).reshape(height, width, batch, wide // 4)


def images_abreast(batch: int) -> int:
    """How many images a CPU takes abreast: a divisor of the batch that leaves some for a product."""
    return next(n for n in range(max(1, batch // 4), 0, -1) if batch % n == 0)


def remat(step: Callable) -> Callable:
    """A step of a scan whose backward pass computes it again: a quarter faster on the CPU than to keep and read it."""
    return jax.checkpoint(step, prevent_cse=False)  # a scan keeps the two apart by itself


def zeros(gates: Array) -> Pair:
    """h and c before the first step, like [..., F] for gates [..., 4 F]."""
    start = jnp.zeros((*gates.shape[:-1], gates.shape[-1] // 4), gates.dtype)
    return start, start


def around(h: Array, width: int) -> Array:
    """The pixels of a row [W, B, F] around each, side by side: [W, B, width * F]; zeros beyond the ends."""
    padded = jnp.pad(h, [(width // 2, width // 2), (0, 0), (0, 0)])
    return jnp.concatenate([padded[k : k + h.shape[0]] for k in range(width)], axis=-1)


def down(x: Array) -> Array:
    """[H, ...] moved down by a row, from zeros."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def skew(x: Array) -> Array:
    """[H, W, ...] -> [H, W + H - 1, ...]: row i moved right by i, between zeros, so that diagonals become columns."""
    height, width, *inner = x.shape
    padded = jnp.pad(x, [(0, 0), (0, height), *[(0, 0)] * len(inner)])
    # each row is read one shorter than it is, so that the next one starts one further to the right
    return padded.reshape(-1, *inner)[:-height].reshape(height, width + height - 1, *inner)


def unskew(x: Array, width: int) -> Array:
    """The inverse of `skew`: [H, W + H - 1, ...] -> [H, W, ...]."""
    height, _, *inner = x.shape
    flat = jnp.pad(x.reshape(-1, *inner), [(0, height), *[(0, 0)] * len(inner)])
    return flat.reshape(height, width + height, *inner)[:, :width]
