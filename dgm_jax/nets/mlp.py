"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "elu": nn.elu,
    "gelu": nn.gelu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "tanh": nn.tanh,
}


def activation(name: str) -> Activation:
    """The elementwise function of that name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class MLP(nn.Module):
    """Dense layers on the last axis, [..., d] -> [..., features[-1]]; the last layer is linear."""

    features: Sequence[int]
    activation: str = "relu"
    last_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Values of the last layer."""
        act = activation(self.activation)
        for width in self.features[:-1]:
            x = act(nn.Dense(width)(x))
        return nn.Dense(self.features[-1], kernel_init=self.last_init)(x)
