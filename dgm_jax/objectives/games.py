"""Two-player games between a generator and a critic.

    D_f(data | model) >= E_data[T(x)] - E_model[f*(T(x))],    T = g_f(critic)

The critic raises the right side, the generator lowers it. A generator that far from the data sees only a flat
f*(T) raises E_model[T] instead, which has the same fixed point: the non-saturating game.

References: Goodfellow et al. 2014, arXiv 1406.2661; Nowozin et al. 2016, arXiv 1606.00709 (f-GAN; section 3.2 for
the non-saturating form); Mescheder et al. 2018, arXiv 1801.04406 (R1).
"""

from __future__ import annotations

import jax
from jax import Array

from dgm_jax.inference.divergences import DIVERGENCES
from dgm_jax.numerics import sum_event
from dgm_jax.objectives import require
from dgm_jax.training.learners import per_example
from dgm_jax.types import Batch, Key, Loss, Metrics, Model, Params


def non_saturating(model: Model, r1: float = 0.0) -> dict[str, Loss]:
    """The game of Goodfellow et al.: critic's cross-entropy, generator's -log D. See `f_gan`."""
    return f_gan(model, "gan", saturating=False, r1=r1)


def f_gan(model: Model, divergence: str = "gan", saturating: bool = True, r1: float = 0.0) -> dict[str, Loss]:
    """The game whose value is an f-divergence.

    Args:
        model: needs `critic` and `sample`, the latter differentiable, with params {"generator", "critic"}.
        divergence: a name in inference.divergences.
        saturating: the generator lowers the bound; otherwise it raises E_model[T].
        r1: weight of the penalty r1 / 2 |d critic / dx|^2 on data.

    Returns:
        {"critic": Loss, "generator": Loss}; the first has the terms "real" and "fake", the critic's values, and
        "penalty" if r1 > 0. Its "loss" without the penalty is minus the bound. There are as many fakes as data.

    Raises:
        TypeError: the model lacks a capability.
        ValueError: an unknown divergence.
    """
    critic, sample = require(model, "critic", "sample", by="f_gan")
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; one of {', '.join(DIVERGENCES)}")
    row = DIVERGENCES[divergence]

    def on_fakes(params: Params, key: Key, batch: Batch) -> Array:
        sample_key, critic_key = jax.random.split(key)
        x = sample(params, sample_key, batch["x"].shape[0], batch.get("cond"))
        return critic(params, critic_key, {**batch, "x": x})

    def critic_terms(params: Params, key: Key, batch: Batch) -> Metrics:
        real_key, fake_key = jax.random.split(key)
        fake = on_fakes(params, fake_key, batch)
        if r1:
            real, pull = jax.vjp(lambda x: critic(params, real_key, {**batch, "x": x}), batch["x"])
            penalty = r1 / 2 * sum_event(pull(jax.numpy.ones_like(real))[0] ** 2)
        else:
            real = critic(params, real_key, batch)
        loss = row.conjugate_activation(fake) - row.activation(real)
        terms = {"loss": loss, "real": real, "fake": fake}
        return terms | {"loss": loss + penalty, "penalty": penalty} if r1 else terms

    def generator_terms(params: Params, key: Key, batch: Batch) -> Metrics:
        fake = on_fakes(params, key, batch)
        return {"loss": -(row.conjugate_activation(fake) if saturating else row.activation(fake))}

    return {"critic": per_example(critic_terms), "generator": per_example(generator_terms)}
