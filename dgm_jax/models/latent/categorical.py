"""Autoencoder with categorical latents: N variables of K categories, one-hot.

    p(z) = prod_n softmax(b_n)      p(x | z) = Bernoulli(sigmoid f(z))      q(z | x) = prod_n softmax(g(x)_n)

The draws are discrete, so that no gradient passes through z: what trains q is an estimator of objectives/discrete.py,
or a relaxation. With labels y, b, f and g read them.

References: Jang, Gu & Poole 2017, arXiv 1611.01144; Maddison, Mnih & Teh 2017, arXiv 1611.00712.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dgm_jax.distributions import bernoulli_fit, bernoulli_log_prob, bernoulli_sample
from dgm_jax.models.condition import label_of, vector_of
from dgm_jax.models.latent.units import Units, one_hot, relaxed_one_hot
from dgm_jax.nets.mlp import MLP
from dgm_jax.nets.precision import mixed
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params


def make(
    *,
    shape: tuple[int, ...],
    latent: int = 20,
    categories: int = 10,
    hidden: Sequence[int] = (200, 200),
    activation: str = "relu",
    classes: int = 0,
    bf16: bool = False,
) -> Model:
    """An autoencoder with params {"prior" [latent, categories], or one such a class, "encoder", "decoder", "offset"}.

    z is [B, latent, categories]. `encode` gives the probabilities q(z | x), `decode` those of p(x | z); temperature
    divides the logits of the prior. `offset` [*shape], a bias of x, starts at the data's mean.

    Args:
        shape: of one example, of entries in [0, 1].
        latent: N, the number of variables.
        categories: K, of each.
        hidden: widths of the encoder's layers; the decoder has them in reverse.
        activation: a name that nets.mlp knows.
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.
    """
    size = math.prod(shape)
    encoder = mixed(MLP((*hidden, latent * categories), activation), bf16)
    decoder = mixed(MLP((*reversed(hidden), size), activation), bf16)

    def net_input(x: Array, cond: Array | None) -> Array:
        x = x.reshape(x.shape[0], -1)
        label = vector_of(classes, 0, cond, x)
        return x if label is None else jnp.concatenate([x, label], axis=-1)

    def init(key: Key, batch: Batch) -> Params:
        x, cond = batch["x"], batch.get("cond")
        encoder_key, decoder_key = jax.random.split(key)
        z = jnp.zeros((x.shape[0], latent, categories), x.dtype)
        return {
            "prior": jnp.zeros((classes, latent, categories) if classes else (latent, categories), x.dtype),
            "encoder": encoder.init(encoder_key, net_input(x, cond))["params"],
            "decoder": decoder.init(decoder_key, net_input(z, cond))["params"],
            "offset": bernoulli_fit(x, batch.get("mask")),
        }

    def posterior(params: Params, batch: Batch) -> Array:
        """Logits of q(z | x), [B, latent, categories]."""
        x = net_input(batch["x"], batch.get("cond"))
        return jnp.asarray(encoder.apply({"params": params["encoder"]}, x)).reshape(-1, latent, categories)

    def prior_logits(params: Params, n: int, cond: Array | None) -> Array:
        label, table = label_of(classes, cond), params["prior"]
        return jnp.broadcast_to(table[None], (n, latent, categories)) if label is None else table[label]

    def output(params: Params, z: Array, cond: Array | None) -> Array:
        """Logits of p(x | z) given what is read of z, [B, D].

        Scaled, one-hot vectors are as long as the initial weights take their inputs to be.
        """
        z = math.sqrt(categories) * z
        logits = jnp.asarray(decoder.apply({"params": params["decoder"]}, net_input(z, cond)))
        return logits + params["offset"].reshape(1, -1)

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        return jax.nn.softmax(posterior(params, batch))

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        return jax.nn.sigmoid(output(params, codes, cond)).reshape(-1, *shape)

    def of(units: Units) -> Model:
        """The model whose latents are such units."""

        def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
            logits = posterior(params, batch)
            z = units.draw(key, logits)
            return z, sum_event(units.log_prob(z, logits))

        def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
            return sum_event(units.log_prob(z, posterior(params, batch)))

        def log_joint(params: Params, z: Array, batch: Batch) -> Array:
            x, cond = batch["x"].reshape(-1, size), batch.get("cond")
            log_prior = units.log_prob(z, prior_logits(params, z.shape[0], cond))
            return sum_event(bernoulli_log_prob(x, output(params, units.read(z), cond))) + sum_event(log_prior)

        def latents(params: Params, key: Key, n: int, cond: Array | None, temperature: float) -> Array:
            return units.draw(key, prior_logits(params, n, cond) / temperature)

        def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
            return units.read(latents(params, key, n, cond, temperature))

        def dream(
            params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
        ) -> tuple[Array, Array]:
            z_key, x_key = jax.random.split(key)
            z = latents(params, z_key, n, cond, temperature)
            return z, bernoulli_sample(x_key, output(params, units.read(z), cond)).reshape(n, *shape)

        def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
            return dream(params, key, n, cond, temperature)[1]

        return Model(
            init,
            draw=draw,
            log_joint=log_joint,
            log_posterior=log_posterior,
            dream=dream,
            sample=sample,
            prior=prior,
            encode=encode,
            decode=decode,
            support="binary",
        )

    def relax(temperature: Array | float, kind: str = "concrete") -> Model:
        units = relaxed_one_hot(temperature, kind)

        def rate_distortion(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
            """With the rates of z itself, in closed form: log q - log p of soft draws has another mean than theirs."""
            x, cond, logits = batch["x"].reshape(-1, size), batch.get("cond"), posterior(params, batch)
            log_q = jax.nn.log_softmax(logits)
            log_p = jax.nn.log_softmax(prior_logits(params, x.shape[0], cond))
            z = units.draw(key, logits)
            rates = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
            return rates, -sum_event(bernoulli_log_prob(x, output(params, units.read(z), cond)))

        return of(units)._replace(rate_distortion=None if kind == "concrete" else rate_distortion)

    return of(one_hot())._replace(relax=relax)
