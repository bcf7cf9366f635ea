"""Variational autoencoder with a diagonal normal posterior.

    p(z) = N(0, I)        p(x | z) = Bernoulli(sigmoid f(z)) or N(f(z), scale^2)
    q(z | x) = N(m(x), s(x)^2), drawn as z = m(x) + s(x) noise: gradients pass through z

With labels y, encoder and decoder read them too: p(x, z | y) = p(z) p(x | z, y), q(z | x, y).

References: Kingma & Welling 2014, arXiv 1312.6114; Rezende, Mohamed & Wierstra 2014, arXiv 1401.4082; labels:
Kingma et al. 2014, arXiv 1406.5298 (M2); one learned scale: Rybkin et al. 2021, arXiv 2006.13202.
Measured: at most 87.76 nats on fixed-binarization MNIST, 2x200 units, as IWAE k = 5 (k = 5000; published VAE: 88.71).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.distributions import (
    bernoulli_fit,
    bernoulli_log_prob,
    bernoulli_sample,
    normal_log_prob,
    normal_sample,
    standard_normal_log_prob,
)
from dgm_jax.models.condition import label_of
from dgm_jax.nets.conv import Conv, downsample, upsample
from dgm_jax.nets.mlp import MLP, activation
from dgm_jax.nets.precision import mixed
from dgm_jax.numerics import masked_mean, sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params

LIKELIHOODS = ("bernoulli", "gaussian", "gaussian_pixel")
MIN_SCALE = 1e-3  # of a Gaussian likelihood: the density of a constant pixel has no upper bound


class ConvEncoder(nn.Module):
    """[B, H, W, C] -> [B, features]; every entry of `channels` halves height and width."""

    channels: Sequence[int]
    features: int
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Values of the last, linear layer."""
        act = activation(self.activation)
        for channels in self.channels:
            x = downsample(act(Conv(channels)(x)))
        return nn.Dense(self.features)(x.reshape(x.shape[0], -1))


class ConvDecoder(nn.Module):
    """[B, features] -> [B, *shape], shape = (H, W, C): the mirror image of ConvEncoder."""

    channels: Sequence[int]
    shape: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Values of the last, linear layer."""
        act = activation(self.activation)
        height, width, channels_out = self.shape
        scale = 2 ** len(self.channels)
        base = (height // scale, width // scale, self.channels[-1])
        x = act(nn.Dense(math.prod(base))(z)).reshape(z.shape[0], *base)
        for channels in reversed(self.channels[:-1]):
            x = act(Conv(channels)(upsample(x)))
        return Conv(channels_out)(upsample(x))


def make(
    *,
    shape: tuple[int, ...],
    latent: int = 50,
    hidden: Sequence[int] = (200, 200),
    net: str = "mlp",
    activation: str = "tanh",
    likelihood: str = "bernoulli",
    classes: int = 0,
    bf16: bool = False,
) -> Model:
    """A VAE; its params are {"encoder", "decoder", "offset"} and, for likelihood "gaussian", "scale".

    `sample` draws x ~ p(x | z); temperature scales the standard deviation of z. `encode` gives the mean of q(z | x),
    `decode` that of p(x | z). `offset` [*shape], a bias of the output, starts at the data's mean.

    Args:
        shape: of one example; (H, W, C) for net="conv".
        latent: number of latent variables.
        hidden: widths of the encoder's layers, or its channels from level to level, each of half the size of
            the one before; the decoder has them in reverse.
        net: "mlp" or "conv".
        activation: a name that nets.mlp knows.
        likelihood: "bernoulli" for x in [0, 1]; "gaussian" with one learned scale; "gaussian_pixel" with a
            scale for each pixel from the decoder.
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.

    Raises:
        ValueError: an unknown net or likelihood, or images that the levels of a conv net cannot halve.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {likelihood!r}; one of {', '.join(LIKELIHOODS)}")
    outputs = 2 if likelihood == "gaussian_pixel" else 1
    wide = (*shape[:-1], outputs * shape[-1])
    if net == "mlp":
        encoder = mixed(MLP((*hidden, 2 * latent), activation), bf16)
        decoder = mixed(MLP((*reversed(hidden), math.prod(wide)), activation), bf16)
    elif net == "conv":
        if len(shape) != 3 or any(size % 2 ** len(hidden) for size in shape[:2]):
            raise ValueError(
                f"a conv net of {len(hidden)} levels needs images (H, W, C) whose height and width "
                f"{2 ** len(hidden)} divides, not shape {shape}"
            )
        encoder = mixed(ConvEncoder(tuple(hidden), 2 * latent, activation), bf16)
        decoder = mixed(ConvDecoder(tuple(hidden), wide, activation), bf16)
    else:
        raise ValueError(f"unknown net {net!r}; one of mlp, conv")

    def flat(x: Array) -> Array:
        return x.reshape(x.shape[0], -1)

    def conditioned(x: Array, cond: Array | None) -> Array:
        """Labels as one-hot channels after those of x [B, ..., C]."""
        if (label := label_of(classes, cond)) is None:
            return x
        labels = jnp.expand_dims(jax.nn.one_hot(label, classes, dtype=x.dtype), range(1, x.ndim - 1))
        return jnp.concatenate([x, jnp.broadcast_to(labels, (*x.shape[:-1], classes))], axis=-1)

    def encoder_input(x: Array, cond: Array | None) -> Array:
        return conditioned(flat(x) if net == "mlp" else x, cond)

    def init(key: Key, batch: Batch) -> Params:
        x, cond = batch["x"], batch.get("cond")
        encoder_key, decoder_key = jax.random.split(key)
        z = jnp.zeros((x.shape[0], latent), x.dtype)
        fit = bernoulli_fit if likelihood == "bernoulli" else masked_mean
        params = {
            "encoder": encoder.init(encoder_key, encoder_input(x, cond))["params"],
            "decoder": decoder.init(decoder_key, conditioned(z, cond))["params"],
            "offset": fit(x, batch.get("mask")),
        }
        return params | ({"scale": jnp.zeros((), x.dtype)} if likelihood == "gaussian" else {})

    def posterior(params: Params, batch: Batch) -> tuple[Array, Array]:
        """Mean and log standard deviation of q(z | x), [B, latent] each."""
        x = encoder_input(batch["x"], batch.get("cond"))
        y = jnp.asarray(encoder.apply({"params": params["encoder"]}, x))
        return y[:, :latent], y[:, latent:]

    def output(params: Params, z: Array, cond: Array | None) -> tuple[Array, Array | None]:
        """Logits of p(x | z) and None, or its mean and scale: [B, D] each, or a scalar scale.

        The pixels are in one row: elementwise functions of [..., 28, 28, 1] are far slower on the CPU.
        """
        y = jnp.asarray(decoder.apply({"params": params["decoder"]}, conditioned(z, cond)))
        rows = y.reshape(z.shape[0], -1, outputs * shape[-1])
        location = flat(rows[..., : shape[-1]]) + params["offset"].reshape(1, -1)
        if likelihood == "bernoulli":
            return location, None
        raw = params["scale"] if likelihood == "gaussian" else flat(rows[..., shape[-1] :])
        return location, MIN_SCALE + jax.nn.softplus(raw)

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        loc, log_scale = posterior(params, batch)
        noise = jax.random.normal(key, loc.shape, loc.dtype)
        return loc + jnp.exp(log_scale) * noise, sum_event(standard_normal_log_prob(noise) - log_scale)

    def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
        loc, log_scale = posterior(params, batch)
        return sum_event(standard_normal_log_prob((z - loc) * jnp.exp(-log_scale)) - log_scale)

    def log_prior(params: Params, z: Array, batch: Batch) -> Array:
        return sum_event(standard_normal_log_prob(z))

    def log_joint(params: Params, z: Array, batch: Batch) -> Array:
        x = flat(batch["x"])
        location, scale = output(params, z, batch.get("cond"))
        log_prob = bernoulli_log_prob(x, location) if scale is None else normal_log_prob(x, location, scale)
        return sum_event(log_prob) + log_prior(params, z, batch)

    def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return temperature * jax.random.normal(key, (n, latent), params["offset"].dtype)

    def dream(
        params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
    ) -> tuple[Array, Array]:
        z_key, x_key = jax.random.split(key)
        z = prior(params, z_key, n, cond, temperature)
        location, scale = output(params, z, cond)
        x = bernoulli_sample(x_key, location) if scale is None else normal_sample(x_key, location, scale)
        return z, x.reshape(n, *shape)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return dream(params, key, n, cond, temperature)[1]

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        return posterior(params, batch)[0]

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        location, scale = output(params, codes, cond)
        mean = jax.nn.sigmoid(location) if scale is None else location
        return mean.reshape(-1, *shape)

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        log_prior=log_prior,
        log_posterior=log_posterior,
        dream=dream,
        sample=sample,
        prior=prior,
        encode=encode,
        decode=decode,
        support="binary" if likelihood == "bernoulli" else "real",
    )
