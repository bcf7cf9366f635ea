"""Autoencoder with categorical latents: N variables of K categories, one-hot.

    p(z) = prod_n softmax(b_n)      p(x | z) = prod_i p(x_i | f(z)_i)      q(z | x) = prod_n softmax(g(x)_n)

The draws are discrete, so that no gradient passes through z: what trains q is an estimator of objectives/discrete.py,
or a relaxation. With labels y, b, f and g read them.

References: Jang, Gu & Poole 2017, arXiv 1611.01144; Maddison, Mnih & Teh 2017, arXiv 1611.00712.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.condition import beside, label_of, vector_of
from dgm_jax.models.latent import likelihoods
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
    output: str = "bernoulli",
    components: int = 1,
    levels: int = 256,
    classes: int = 0,
    bf16: bool = False,
) -> Model:
    """An autoencoder with params {"prior" [latent, categories], or one such a class, "encoder", "decoder", "offset"}.

    z is [B, latent, categories]. `encode` gives the probabilities q(z | x), `decode` the mean of p(x | z); temperature
    divides the logits of the prior.

    Args:
        shape: of one example.
        latent: N, the number of variables.
        categories: K, of each.
        hidden: widths of the encoder's layers; the decoder has them in reverse.
        activation: a name that nets.mlp knows.
        output: distribution of a dimension, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.
    """
    out = outputs.make(output, components=components, levels=levels)
    encoder = mixed(MLP((*hidden, latent * categories), activation), bf16)
    decoder = mixed(MLP((*reversed(hidden), math.prod(shape) * out.size), activation), bf16)
    likelihood = likelihoods.independent(shape, decoder, out)

    def given(x: Array, cond: Array | None) -> Array:
        x = x.reshape(x.shape[0], -1)
        return beside(x, vector_of(classes, 0, cond, x))

    def as_read(z: Array, cond: Array | None) -> Array:
        """What p(x | z) is given: scaled, one-hot vectors are as long as initial weights take their inputs to be."""
        return given(math.sqrt(categories) * z, cond)

    def init(key: Key, batch: Batch) -> Params:
        x, cond = likelihood.read(batch), batch.get("cond")
        encoder_key, likelihood_key = jax.random.split(key)
        z = jnp.zeros((x.shape[0], latent, categories), x.dtype)
        return {
            "prior": jnp.zeros((classes, latent, categories) if classes else (latent, categories), x.dtype),
            "encoder": encoder.init(encoder_key, given(x, cond))["params"],
        } | likelihood.init(likelihood_key, as_read(z, cond), batch)

    def posterior(params: Params, batch: Batch) -> Array:
        """Logits of q(z | x), [B, latent, categories]."""
        x = given(likelihood.read(batch), batch.get("cond"))
        return jnp.asarray(encoder.apply({"params": params["encoder"]}, x)).reshape(-1, latent, categories)

    def prior_logits(params: Params, n: int, cond: Array | None) -> Array:
        label, table = label_of(classes, cond), params["prior"]
        return jnp.broadcast_to(table[None], (n, latent, categories)) if label is None else table[label]

    def log_likelihood(params: Params, z: Array, batch: Batch) -> Array:
        """log p(x | z) of what is read of z, [B]."""
        return likelihood.log_prob(params, as_read(z, batch.get("cond")), batch)

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        return jax.nn.softmax(posterior(params, batch))

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        assert likelihood.mean is not None
        return likelihood.mean(params, as_read(codes, cond))

    def of(units: Units) -> Model:
        """The model whose latents are such units."""

        def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
            logits = posterior(params, batch)
            z = units.draw(key, logits)
            return z, sum_event(units.log_prob(z, logits))

        def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
            return sum_event(units.log_prob(z, posterior(params, batch)))

        def log_joint(params: Params, z: Array, batch: Batch) -> Array:
            log_prior = sum_event(units.log_prob(z, prior_logits(params, z.shape[0], batch.get("cond"))))
            return log_likelihood(params, units.read(z), batch) + log_prior

        def latents(params: Params, key: Key, n: int, cond: Array | None, temperature: float) -> Array:
            return units.draw(key, prior_logits(params, n, cond) / temperature)

        def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
            return units.read(latents(params, key, n, cond, temperature))

        def dream(
            params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
        ) -> tuple[Array, Array]:
            z_key, x_key = jax.random.split(key)
            z = latents(params, z_key, n, cond, temperature)
            return z, likelihood.sample(params, x_key, as_read(units.read(z), cond))

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
            support=likelihood.support,
            observed=likelihood.observed,
        )

    def relax(temperature: Array | float, kind: str = "concrete") -> Model:
        units = relaxed_one_hot(temperature, kind)

        def rate_distortion(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
            """With the rates of z itself, in closed form: log q - log p of soft draws has another mean than theirs."""
            logits = posterior(params, batch)
            log_q = jax.nn.log_softmax(logits)
            log_p = jax.nn.log_softmax(prior_logits(params, logits.shape[0], batch.get("cond")))
            z = units.draw(key, logits)
            rates = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
            return rates, -log_likelihood(params, units.read(z), batch)

        return of(units)._replace(rate_distortion=None if kind == "concrete" else rate_distortion)

    return of(one_hot())._replace(relax=relax)
