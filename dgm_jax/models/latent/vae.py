"""Variational autoencoder.

    p(x, z | c) = p(z) p(x | z, c)        q(z | x, c)

The likelihood p(x | z, c) has independent dimensions, each an `outputs.Output` whose parameters the decoder gives. The
prior is one of `priors`, the posterior one of `posteriors`; draws of it are functions of noise, and gradients pass
through them. -log p(x | z, c) is the distortion, KL(q | p) the rate.

Where a batch has "observed", only those dimensions are read and scored: the bound is then of log p(x_observed)
(Mattei & Frellsen 2019, arXiv 1812.02633).

References: Kingma & Welling 2014, arXiv 1312.6114; Rezende, Mohamed & Wierstra 2014, arXiv 1401.4082; conditions:
Sohn, Lee & Yan 2015; one learned scale for all dimensions: Rybkin et al. 2021, arXiv 2006.13202.
Measured: at most 87.76 nats on fixed-binarization MNIST, 2x200 units, as IWAE k = 5 (k = 5000; published VAE: 88.71).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.distributions import normal_kl
from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import made
from dgm_jax.models.condition import array_of
from dgm_jax.models.latent import posteriors, priors
from dgm_jax.nets.autoencoder import ConvDecoder, ConvEncoder
from dgm_jax.nets.mlp import MLP
from dgm_jax.nets.precision import Net, mixed
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params

NETS = ("mlp", "conv")
PRIORS = ("normal", "vamp", "made")
POSTERIORS = ("diagonal", "planar", "iaf")


def make(
    *,
    shape: tuple[int, ...],
    latent: int = 50,
    hidden: Sequence[int] = (200, 200),
    net: str = "mlp",
    blocks: int = 0,
    activation: str = "tanh",
    output: str = "bernoulli",
    components: int = 1,
    levels: int = 256,
    shared_scale: bool = False,
    prior: str = "normal",
    prior_components: int = 500,
    prior_hidden: Sequence[int] = (100,),
    posterior: str = "diagonal",
    flows: int = 4,
    flow_hidden: Sequence[int] = (100,),
    classes: int = 0,
    cond_shape: tuple[int, ...] = (),
    bf16: bool = False,
) -> Model:
    """A VAE; its params are {"encoder", "decoder", "offset", "prior", "posterior"}, and "scale" where that is shared.

    `sample` draws x ~ p(x | z); temperature is the prior's. `decode` gives the mean of p(x | z), `encode` where the
    posterior's base has its mean. `offset`, a bias of the decoder, starts at the data's marginals.

    Args:
        shape: of one example; (H, W, C) for net="conv".
        latent: number of latent variables.
        hidden: widths of the encoder's layers, or its channels from level to level, each of half the size of
            the one before; the decoder has them in reverse.
        net: "mlp" or "conv".
        blocks: residual blocks at each level of a conv net.
        activation: a name that nets.mlp knows.
        output: distribution of a dimension, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        shared_scale: whether the output's scale is one parameter, not the decoder's to say for each dimension.
        prior: "normal", "vamp", or "made", an autoregressive one of Gaussian mixtures.
        prior_components: of a mixture: the vamp prior's pseudo-inputs, or the terms of each of MADE's conditionals.
        prior_hidden: of the MADE.
        posterior: "diagonal", "planar" or "iaf".
        flows: of the posterior.
        flow_hidden: of the MADE in each flow of "iaf".
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.
        cond_shape: (), or the shape of an array in batch["cond"] that it is conditional on.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.

    Raises:
        ValueError: an unknown net, prior or posterior, one that does not go with the rest, or images that the levels
            of a conv net cannot halve.
    """
    out = outputs.make(output, components=components, levels=levels)
    dims = math.prod(shape)
    size = out.size - (components if shared_scale else 0)  # of what the decoder gives for a dimension
    if shared_scale and output not in outputs.SCALED:
        raise ValueError(f"output {output!r} has no scale to share; one of {', '.join(outputs.SCALED)} has")
    q = _posterior(posterior, latent, flows, flow_hidden, activation)
    encoder, decoder = (
        mixed(part, bf16) for part in _nets(net, shape, hidden, activation, blocks, q.size, latent, size)
    )
    if prior == "vamp" and (classes or cond_shape or posterior != "diagonal"):
        raise ValueError("a vamp prior is a mixture of diagonal posteriors of inputs without conditions")
    p = _prior(prior, latent, prior_components, prior_hidden, lambda params, u: _apply(encoder, params["encoder"], u))

    def condition(batch_cond: Array | None, like: Array) -> Array | None:
        return array_of(classes, cond_shape, batch_cond, like)

    def encoder_input(batch: Batch) -> Array:
        x = out.read(batch["x"])
        if "observed" in batch:
            x = x * batch["observed"]
        c = condition(batch.get("cond"), x)
        return _beside(x.reshape(x.shape[0], -1) if net == "mlp" else x, c)

    def init(key: Key, batch: Batch) -> Params:
        x = batch["x"]
        encoder_key, decoder_key, prior_key, posterior_key = jax.random.split(key, 4)
        read = encoder_input(batch)
        z = jnp.zeros((x.shape[0], latent), x.dtype)
        counted = _counted(batch)
        marginals = out.fit(x, counted).reshape(dims, out.size)
        params = {
            "encoder": encoder.init(encoder_key, read)["params"],
            "decoder": decoder.init(decoder_key, _beside(z, condition(batch.get("cond"), z)))["params"],
            "offset": marginals[:, :size].reshape(-1),
            "prior": p.init(prior_key, read),
            "posterior": q.init(posterior_key),
        }
        if not shared_scale:
            return params
        # that of all values as one variable: the mean over dimensions is drawn to nothing by those that are constant
        if counted is not None:
            counted = jnp.broadcast_to(jnp.expand_dims(counted, range(counted.ndim, x.ndim)), x.shape).reshape(-1)
        return params | {"scale": out.fit(x.reshape(-1), counted)[size:]}

    def encoded(params: Params, batch: Batch) -> Array:
        return _apply(encoder, params["encoder"], encoder_input(batch))

    def raw(params: Params, z: Array, cond: Array | None) -> Array:
        """What the outputs are given, [B, D, out.size]."""
        y = _apply(decoder, params["decoder"], _beside(z, condition(cond, z)))
        # of images in one row: elementwise functions of [..., 28, 28, 1] are far slower on the CPU
        y = (y.reshape(z.shape[0], -1) + params["offset"][None]).reshape(z.shape[0], dims, size)
        if not shared_scale:
            return y
        return jnp.concatenate([y, jnp.broadcast_to(params["scale"], (*y.shape[:2], components))], axis=-1)

    def log_likelihood(params: Params, z: Array, batch: Batch) -> Array:
        each = out.log_prob(batch["x"].reshape(-1, dims), raw(params, z, batch.get("cond")))
        return sum_event(each if "observed" not in batch else batch["observed"].reshape(-1, dims) * each)

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        return q.draw(params["posterior"], key, encoded(params, batch))

    def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
        assert q.log_prob is not None
        return q.log_prob(params["posterior"], z, encoded(params, batch))

    def log_prior(params: Params, z: Array, batch: Batch) -> Array:
        return p.log_prob(params, z)

    def log_joint(params: Params, z: Array, batch: Batch) -> Array:
        return log_likelihood(params, z, batch) + log_prior(params, z, batch)

    def rate_distortion(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        statistics = encoded(params, batch)
        z, log_q = q.draw(params["posterior"], key, statistics)
        if posterior == "diagonal" and prior == "normal":
            loc, log_scale = posteriors.split(statistics, latent)
            rates = normal_kl(loc, jnp.exp(log_scale), 0.0, 1.0)
        else:
            rates = (log_q - p.log_prob(params, z))[:, None]
        return rates, -log_likelihood(params, z, batch)

    def prior_draw(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return p.sample(params, key, n, temperature)

    def dream(
        params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
    ) -> tuple[Array, Array]:
        z_key, x_key = jax.random.split(key)
        z = prior_draw(params, z_key, n, cond, temperature)
        return z, out.sample(x_key, raw(params, z, cond), 1.0).reshape(n, *shape)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return dream(params, key, n, cond, temperature)[1]

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        return q.center(params["posterior"], encoded(params, batch))

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        return out.mean(raw(params, codes, cond)).reshape(-1, *shape)

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        log_prior=log_prior,
        log_posterior=log_posterior if q.log_prob is not None else None,
        rate_distortion=rate_distortion,
        dream=dream,
        sample=sample,
        prior=prior_draw,
        encode=encode,
        decode=decode,
        support=out.support,
        observed=True,
    )


def _apply(net: Net, params: Params, x: Array) -> Array:
    return jnp.asarray(net.apply({"params": params}, x))


def _counted(batch: Batch) -> Array | None:
    """What of x is neither padding nor missing: [B], or like x; None for all of it."""
    mask, observed = batch.get("mask"), batch.get("observed")
    if mask is None or observed is None:
        return mask if observed is None else observed
    return jnp.where(jnp.expand_dims(mask != 0, range(1, observed.ndim)), observed, 0)


def _beside(x: Array, c: Array | None) -> Array:
    """x [B, ..., C] and a condition: one of its own height and width, or a vector at every place, as more channels."""
    if c is None:
        return x
    if x.ndim == 2 or c.shape[1:-1] != x.shape[1:-1]:
        c = jnp.expand_dims(c.reshape(c.shape[0], -1), range(1, x.ndim - 1))
        c = jnp.broadcast_to(c, (*x.shape[:-1], c.shape[-1]))
    return jnp.concatenate([x, c], axis=-1)


def _nets(
    net: str,
    shape: tuple[int, ...],
    hidden: Sequence[int],
    activation: str,
    blocks: int,
    encoded: int,
    latent: int,
    size: int,
) -> tuple[nn.Module, nn.Module]:
    """Encoder to `encoded` numbers, and decoder to `size` numbers for each dimension."""
    if net not in NETS:
        raise ValueError(f"unknown net {net!r}; one of {', '.join(NETS)}")
    if net == "mlp":
        return (
            MLP((*hidden, encoded), activation),
            MLP((*reversed(hidden), math.prod(shape) * size), activation),
        )
    if len(shape) != 3 or any(side % 2 ** len(hidden) for side in shape[:2]):
        raise ValueError(
            f"a conv net of {len(hidden)} levels needs images (H, W, C) whose height and width "
            f"{2 ** len(hidden)} divides, not shape {shape}"
        )
    wide = (*shape[:-1], size * shape[-1])
    return (
        ConvEncoder(tuple(hidden), encoded, activation, blocks),
        ConvDecoder(tuple(hidden), wide, activation, blocks),
    )


def _posterior(name: str, latent: int, flows: int, hidden: Sequence[int], activation: str) -> posteriors.Posterior:
    if name not in POSTERIORS:
        raise ValueError(f"unknown posterior {name!r}; one of {', '.join(POSTERIORS)}")
    if name == "diagonal":
        return posteriors.diagonal(latent)
    if name == "planar":
        return posteriors.planar(latent, flows)
    return posteriors.iaf(latent, flows, hidden, activation)


def _prior(name: str, latent: int, components: int, hidden: Sequence[int], encode: priors.Encode) -> priors.Prior:
    if name not in PRIORS:
        raise ValueError(f"unknown prior {name!r}; one of {', '.join(PRIORS)}")
    if name == "normal":
        return priors.normal(latent)
    if name == "vamp":
        return priors.vamp(latent, components, encode)
    model = made.make(shape=(latent,), hidden=hidden, output="gaussian", components=components)
    return priors.of_model(latent, model)
