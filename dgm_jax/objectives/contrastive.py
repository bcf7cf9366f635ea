"""Contrastive divergence: the likelihood gradient of an energy model, its expectation over Markov chains.

    -d log p(x) / dtheta = dE(x) / dtheta - E_p[dE / dtheta]        loss = E(x) - E(chains), the chains held

CD starts the chains at the data in every step; PCD keeps them, and they follow p while theta moves slowly.
The loss is a difference of energies near 0 and not a likelihood: only its gradient has a meaning.

References: Hinton 2002, "Training products of experts by minimizing contrastive divergence"; Tieleman 2008,
"Training restricted Boltzmann machines using approximations to the likelihood gradient".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax.lax import stop_gradient

from dgm_jax.inference import mcmc
from dgm_jax.numerics import masked_mean, sum_event
from dgm_jax.objectives import require
from dgm_jax.training.learners import per_example
from dgm_jax.types import Array, Batch, Key, Loss, Metrics, Model, Out, Params, PyTree


def cd(model: Model, k: int = 1) -> Loss:
    """Contrastive divergence.

    Args:
        model: needs `energy` and `gibbs`.
        k: sweeps from the data.

    Returns:
        A Loss with the terms "loss" and "reconstruction", the squared distance of the chains from their data.

    Raises:
        TypeError: the model lacks a capability.
    """
    energy, advance = _chain(model, k, by="cd")

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        chains = advance(params, key, batch["x"])
        loss = energy(params, None, batch) - energy(params, None, {**batch, "x": chains})
        return {"loss": loss, "reconstruction": sum_event((batch["x"] - chains) ** 2)}

    return per_example(terms)


def pcd(model: Model, k: int = 1, chains: int = 100) -> Loss:
    """Persistent contrastive divergence.

    Args:
        model: needs `energy` and `gibbs`.
        k: sweeps in every step, before the gradient.
        chains: number of chains. They start at examples of the initial batch and are kept in carry["chains"],
            [chains, *event].

    Returns:
        A Loss with the metrics "loss" and "energy", the mean energy of the data.

    Raises:
        TypeError: the model lacks a capability.
    """
    energy, advance = _chain(model, k, by="pcd")

    def init(params: Params, key: Key, batch: Batch) -> PyTree:
        x = batch["x"]
        return {"chains": x[jnp.arange(chains) % x.shape[0]]}

    def apply(params: Params, carry: PyTree, key: Key, batch: Batch) -> tuple[Array, Out]:
        moved = advance(params, key, carry["chains"])
        data_energy = masked_mean(energy(params, None, batch), batch.get("mask"))
        loss = data_energy - jnp.mean(energy(params, None, {"x": moved}))
        return loss, Out({"loss": loss, "energy": data_energy}, {"chains": moved})

    return Loss(init, apply)


def _chain(model: Model, k: int, by: str) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The model's energy, and its chains' state after k sweeps, through which no gradient passes."""
    energy, gibbs = require(model, "energy", "gibbs", by=by)

    def advance(params: Params, key: Key, chains: Array) -> Array:
        return mcmc.run(partial(gibbs, stop_gradient(params)), key, chains, k)

    return energy, advance
