"""Recurrent cells.

LSTM with forget gates (Gers, Schmidhuber & Cummins 2000, Learning to forget: continual prediction with LSTM):

    o, f, i, g = W x + U h' + b,   c = sigmoid(f) c' + sigmoid(i) tanh(g),   h = sigmoid(o) tanh(c)
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dgm_jax.nets.mlp import Dense
from dgm_jax.types import Array, Key

Pair = tuple[Array, Array]


class LSTM(nn.Module):
    """One step of F features: the state (h, c), [B, F] each, and inputs [B, .] -> the next state.

    Each input has a kernel of its own, so that a short one weighs as much at first as a long one. The forget gates
    start open, at a bias of 1 (Jozefowicz, Zaremba & Sutskever 2015, section 2.2).
    """

    features: int

    @nn.compact
    def __call__(self, state: Pair, *inputs: Array) -> Pair:
        """The state after this step."""
        h, c = state
        wide = 4 * self.features

        def remember(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
            return jnp.zeros(shape, dtype).at[self.features : 2 * self.features].set(1)

        recurrent = Dense(wide, kernel_init=nn.initializers.orthogonal(), bias_init=remember, name="recurrent")
        gates = recurrent(h)
        for i, x in enumerate(inputs):
            gates += Dense(wide, use_bias=False, name=f"input_{i}")(x)
        return cell(gates, c)


def cell(gates: Array, c: Array) -> Pair:
    """h and c [..., F] from the gates [..., 4 F], in the order o, f, i, g, and the earlier c."""
    o, f, i, g = jnp.split(gates, 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * nn.tanh(g)
    return nn.sigmoid(o) * nn.tanh(c), c
