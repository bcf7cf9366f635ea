"""Restricted Boltzmann machine of binary units.

    E(v, h) = -b v - c h - v W h        p(h = 1 | v) = sigmoid(c + v W)        p(v = 1 | h) = sigmoid(b + W h)
    F(v) = -log sum_h exp(-E(v, h)) = -b v - sum_j softplus(c + v W)_j        p(v) = exp(-F(v)) / Z

Z is exact by enumeration of the smaller layer, or estimated by annealed importance sampling through the
machines with beta W, beta c and beta b + (1 - beta) b_0, where b_0 are the logits of the data's mean.

References: Smolensky 1986, "Information processing in dynamical systems"; Hinton 2002, "Training products of
experts"; Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief networks" (AIS).
Measured, by AIS: about 16.5 nats on the thresholded digits (experiments/digits/rbm), 91.6 on binarized MNIST
(experiments/binarized_mnist/rbm_500).
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from dgm_jax.distributions import bernoulli_fit, bernoulli_sample
from dgm_jax.inference import ais, mcmc
from dgm_jax.types import Array, Batch, Key, Model, Params

EXACT_UNITS = 16  # 2^16 states of the smaller layer are enumerated in a second
MAX_ENUMERATED = 20


def make(
    *,
    shape: tuple[int, ...],
    hidden: int = 500,
    sample_steps: int = 1000,
    ais_betas: int = 1000,
    ais_chains: int = 100,
) -> Model:
    """An RBM with params {"weights" [D, hidden], "visible" [D], "hidden" [hidden], "buffers": {"base" [D]}}.

    `sample` and `complete` run Gibbs sweeps that start at independent units with the logits `base`, those of
    the data's mean; temperature divides the energy. `encode` gives p(h = 1 | v), `decode` p(v = 1 | h).

    Args:
        shape: of one example, of D entries 0 or 1.
        hidden: number of hidden units.
        sample_steps: sweeps of `sample` and `complete`.
        ais_betas, ais_chains: intermediate machines and chains of `log_partition`, where neither layer has at
            most EXACT_UNITS units.
    """
    size = math.prod(shape)

    def flat(x: Array) -> Array:
        return x.reshape(x.shape[0], size)

    def init(key: Key, batch: Batch) -> Params:
        x = batch["x"]
        base = bernoulli_fit(flat(x), batch.get("mask"))
        return {
            "weights": 0.01 * jax.random.normal(key, (size, hidden), x.dtype),
            "visible": base,
            "hidden": jnp.zeros(hidden, x.dtype),
            "buffers": {"base": base},
        }

    def energy(params: Params, key: Key | None, batch: Batch) -> Array:
        return jax.vmap(partial(free_energy, params))(flat(batch["x"]))

    def gibbs(params: Params, key: Key, chains: Array, beta: Array | float = 1.0) -> Array:
        keys = jax.random.split(key, chains.shape[0])
        moved = jax.vmap(lambda key, v: sweep(params, key, v, beta))(keys, flat(chains))
        return moved.reshape(chains.shape)

    def base_rate(params: Params, key: Key, n: int) -> Array:
        logits = jnp.broadcast_to(params["buffers"]["base"][None], (n, size))
        return bernoulli_sample(key, logits).reshape(n, *shape)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        key, base_key = jax.random.split(key)
        kernel = partial(gibbs, params, beta=1 / temperature)
        return mcmc.run(kernel, key, base_rate(params, base_key, n), sample_steps)

    def complete(params: Params, key: Key, batch: Batch) -> Array:
        x, observed = batch["x"], batch["observed"] != 0
        key, base_key = jax.random.split(key)

        def clamped(key: Key, chains: Array) -> Array:
            return jnp.where(observed, x, gibbs(params, key, chains))

        start = jnp.where(observed, x, base_rate(params, base_key, x.shape[0]))
        return mcmc.run(clamped, key, start, sample_steps)

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        return jax.nn.sigmoid(jax.vmap(partial(hidden_logits, params))(flat(batch["x"])))

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        means = jax.nn.sigmoid(jax.vmap(partial(visible_logits, params))(codes))
        return means.reshape(codes.shape[0], *shape)

    def log_partition(params: Params, key: Key) -> tuple[Array, Array]:
        if min(size, hidden) <= EXACT_UNITS:
            log_z = exact_log_partition(params)
            return log_z, jnp.zeros_like(log_z)
        betas = jnp.linspace(0, 1, ais_betas + 1, dtype=params["weights"].dtype)
        estimate = ais_log_partition(params, key, params["buffers"]["base"], betas, ais_chains)
        return estimate.log_z, estimate.stderr

    return Model(
        init,
        energy=energy,
        log_partition=log_partition,
        gibbs=gibbs,
        sample=sample,
        complete=complete,
        encode=encode,
        decode=decode,
        support="binary",
    )


def hidden_logits(params: Params, v: Array) -> Array:
    """Logits of p(h | v): [D] -> [hidden]."""
    return params["hidden"] + v @ params["weights"]


def visible_logits(params: Params, h: Array) -> Array:
    """Logits of p(v | h): [hidden] -> [D]."""
    return params["visible"] + params["weights"] @ h


def free_energy(params: Params, v: Array, beta: Array | float = 1.0, base: Array | float = 0.0) -> Array:
    """F(v) of the machine with weights beta W and biases beta b + (1 - beta) base and beta c: [D] -> []."""
    bias = beta * params["visible"] + (1 - beta) * base
    return -v @ bias - jnp.sum(jax.nn.softplus(beta * hidden_logits(params, v)))


def sweep(params: Params, key: Key, v: Array, beta: Array | float = 1.0, base: Array | float = 0.0) -> Array:
    """One block Gibbs sweep, h given v and v given h, of the machine of `free_energy`: [D] -> [D]."""
    hidden_key, visible_key = jax.random.split(key)
    h = bernoulli_sample(hidden_key, beta * hidden_logits(params, v))
    return bernoulli_sample(visible_key, beta * visible_logits(params, h) + (1 - beta) * base)


def exact_log_partition(params: Params) -> Array:
    """log Z [] by enumeration of the smaller layer, 2^10 states at a time.

    Raises:
        ValueError: both layers have more than MAX_ENUMERATED units.
    """
    w, b, c = params["weights"], params["visible"], params["hidden"]
    if w.shape[0] < w.shape[1]:
        w, b, c = w.T, c, b  # the machine is symmetric in its layers
    units = w.shape[1]
    if units > MAX_ENUMERATED:
        raise ValueError(f"the smaller layer has {units} units, too many to enumerate (> {MAX_ENUMERATED})")
    block = min(units, 10)

    def add(total: Array, first: Array) -> tuple[Array, None]:
        index = first + jnp.arange(2**block)
        states = ((index[:, None] >> jnp.arange(units)[None]) & 1).astype(w.dtype)
        terms = states @ c + jnp.sum(jax.nn.softplus(states @ w.T + b[None]), axis=1)
        return jnp.logaddexp(total, jax.nn.logsumexp(terms)), None

    starts = jnp.arange(0, 2**units, 2**block)
    return jax.lax.scan(add, jnp.asarray(-jnp.inf, w.dtype), starts)[0]


def ais_log_partition(params: Params, key: Key, base: Array, betas: Array, chains: int) -> ais.LogPartition:
    """log Z by annealed importance sampling from independent units.

    Args:
        params: of the machine.
        key: of all chains.
        base: logits of the independent units [D], best those of the data's mean.
        betas: [T + 1] from 0 to 1.
        chains: independent runs.

    Source: Salakhutdinov & Murray 2008, section 4.1.
    """
    units = params["hidden"].shape[0]
    return ais.log_partition(
        key,
        betas,
        init_sample=lambda key: bernoulli_sample(key, base),
        log_unnormalized=lambda beta, v: -free_energy(params, v, beta, base),
        transition=lambda key, beta, v: sweep(params, key, v, beta, base),
        log_z0=jnp.sum(jax.nn.softplus(base)) + units * math.log(2),
        chains=chains,
    )
