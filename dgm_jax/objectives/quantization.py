"""Vector quantization: an autoencoder through a codebook that follows its encoder.

    loss = -log p(x, code(z)) + commitment sum over cells |z - e_code(z)|^2         z of the encoder; e held

Both terms are sums; the authors' code has means of both, over pixels and over cells. The gradient reaches z straight
through the codes, which is not the gradient of this loss or of any other. The codebook has none: e_k is the mean of
the vectors that were nearest to it, with n_k of them in a step, as running averages

    N_k <- decay N_k + (1 - decay) n_k        M_k <- decay M_k + (1 - decay) sum of these        e_k = M_k / N_k

A code that is hardly used is dead: the encoder does not learn to use it, for it never sees it. Such codes start again
at vectors of the batch, with the usage of an average code.

References: van den Oord et al. 2017, arXiv 1711.00937, eq. 3 and appendix A.1; restarts: Dhariwal et al. 2020,
arXiv 2005.00341, section 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from dgm_jax.nets.quantizer import jittered, nearest
from dgm_jax.numerics import masked_mean, safe_log
from dgm_jax.objectives import require
from dgm_jax.types import Array, Batch, Key, Loss, Model, Out, Params, PyTree


class Codebook(NamedTuple):
    """Of one level."""

    vectors: Array  # [K, D], e
    used: Array  # [K], N
    total: Array  # [K, D], M


def vector_quantization(model: Model, commitment: float = 0.25, decay: float = 0.99, revive: float = 0.1) -> Loss:
    """The loss of a VQ-VAE, and the averages that its codebook is.

    Args:
        model: needs `draw` and `log_joint` of a z that is a tree of the encoder's vectors [B, ..., D], with a
            codebook [K, D] at the same place of params["buffers"]["codebook"]; log_joint quantizes z.
        commitment: weight of the distance between the encoder's vectors and their codes, which the encoder descends.
        decay: of the running averages, a step.
        revive: codes that are used less than this times as often as the average one start again; 0: none.

    Returns:
        A Loss with the metrics "loss", "elbo", the bound on -log p(x) under uniform codes, and "commitment", the
        distance; and of each level "perplexity_<level>", the exponential of the entropy of the batch's codes, and
        "used_<level>", the share of codes that did not start again.

    Raises:
        TypeError: the model lacks a capability, or has no codebook.
    """
    draw, log_joint = require(model, "draw", "log_joint", by="vector_quantization")

    def init(params: Params, key: Key, batch: Batch) -> PyTree:
        if "codebook" not in params.get("buffers", {}):
            raise TypeError("objective 'vector_quantization' needs a model with params['buffers']['codebook']")
        codebook = params["buffers"]["codebook"]
        # a copy: the loop donates the state, and no buffer may be donated twice
        return {
            "used": jax.tree.map(lambda e: jnp.ones(e.shape[0], e.dtype), codebook),
            "total": jax.tree.map(jnp.copy, codebook),
        }

    def apply(params: Params, carry: PyTree, key: Key, batch: Batch) -> tuple[Array, Out]:
        z, log_q = draw(params, key, batch)
        elbo = log_q - log_joint(params, z, batch)
        distances = jax.tree.leaves(jax.tree.map(_distance, z, params["buffers"]["codebook"]))
        distance = jnp.stack(distances).sum(0)
        mask = batch.get("mask")
        terms = {"loss": elbo + commitment * distance, "elbo": elbo, "commitment": distance}
        means = {name: masked_mean(values, mask) for name, values in terms.items()}
        seen = {"z": stop_gradient(z), "mask": jnp.ones_like(elbo) if mask is None else mask}
        return means["loss"], Out(means, carry, examples=seen)

    def update(params: Params, carry: PyTree, key: Key, examples: PyTree) -> Out:
        codebook, found = params["buffers"]["codebook"], {}
        metrics: dict[str, Array] = {}
        for i, level in enumerate(codebook):
            old = Codebook(codebook[level], carry["used"][level], carry["total"][level])
            own_key, z = jax.random.fold_in(key, i), examples["z"][level]
            found[level], own = averaged(own_key, old, z, examples["mask"], decay, revive)
            metrics |= {f"{name}_{level}": value for name, value in own.items()}
        carry = {name: {level: getattr(new, name) for level, new in found.items()} for name in carry}
        return Out(metrics, carry, {"codebook": {level: new.vectors for level, new in found.items()}})

    return Loss(init, apply, update)


def averaged(
    key: Key, old: Codebook, z: Array, mask: Array, decay: float, revive: float
) -> tuple[Codebook, dict[str, Array]]:
    """A codebook after a step, and what is to be logged of it; see `vector_quantization`.

    Args:
        key: of the restarts.
        old: before.
        z: the encoder's vectors for the batch, [B, ..., D].
        mask: [B], 0 = padding.
        decay, revive: as there.
    """
    flat = z.reshape(-1, z.shape[-1])
    keep = jnp.repeat(mask != 0, flat.shape[0] // z.shape[0])
    flat, weight = jnp.where(keep[:, None], flat, 0), keep.astype(z.dtype)
    chosen = jax.nn.one_hot(nearest(flat, old.vectors), old.vectors.shape[0], dtype=z.dtype) * weight[:, None]
    n = chosen.sum(0)
    used = decay * old.used + (1 - decay) * n
    total = decay * old.total + (1 - decay) * jnp.matmul(chosen.T, flat, precision=jax.lax.Precision.HIGHEST)
    vectors = jnp.where((n > 0)[:, None], total / used[:, None], old.vectors)  # without n, M / N stays as it is

    place_key, jitter_key = jax.random.split(key)
    average = used.mean()
    dead = used < revive * average
    place = jax.random.choice(place_key, flat.shape[0], (dead.size,), p=weight)
    centre = masked_mean(flat, keep)
    spread = jnp.sqrt(masked_mean((flat - centre[None]) ** 2, keep).mean())
    fresh = jittered(jitter_key, flat[place], spread)
    used = jnp.where(dead, average, used)
    vectors = jnp.where(dead[:, None], fresh, vectors)
    total = jnp.where(dead[:, None], average * fresh, total)

    share = n / jnp.maximum(n.sum(), 1)
    metrics = {"perplexity": jnp.exp(-(share * safe_log(share)).sum()), "used": 1 - dead.astype(z.dtype).mean()}
    return Codebook(vectors, used, total), metrics


def _distance(z: Array, codebook: Array) -> Array:
    """|z - its code|^2, [B], summed over cells as log p is over dimensions; the code is held."""
    squares = ((z - stop_gradient(codebook[nearest(z, codebook)])) ** 2).sum(-1)
    return squares.reshape(z.shape[0], -1).sum(-1)
