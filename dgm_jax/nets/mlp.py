"""Dense layers, and perceptrons of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.nets.precision import broadcast

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


class Dense(nn.Module):
    """`flax.linen.Dense`, whose bias has its gradient summed in float32; parameters have flax's names and values."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        y = x @ kernel
        return y if bias is None else y + broadcast(bias, y.shape)


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
            x = act(Dense(width)(x))
        return Dense(self.features[-1], kernel_init=self.last_init)(x)
