"""Denoising: regression on the clean data from noised data, at all noise levels at once.

    loss = E_t,noise  w(t) |x_0 - denoise(alpha_t x_0 + sigma_t noise, t)|^2 / D

The optimum is E[x_0 | x_t], and with it the score of q(x_t), for every positive w. The errors of the equivalent
predictions differ by a factor of t alone: with SNR = alpha^2 / sigma^2, that of the noise is SNR times that of x_0.

References: Vincent 2011; Ho et al. 2020, arXiv 2006.11239 (the simple loss); Salimans & Ho 2022, arXiv 2202.00512
(weights); Hang et al. 2023, arXiv 2303.09556 (min-SNR); Kingma et al. 2021, arXiv 2107.00630 (even times).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgm_jax.inference import denoising as diffusion
from dgm_jax.objectives import require
from dgm_jax.training.learners import per_example
from dgm_jax.types import Array, Batch, Key, Loss, Metrics, Model, Params

WEIGHTINGS: dict[str, Callable[[Array], Array]] = {  # log SNR -> weight of the error of x_0
    "x0": jnp.ones_like,
    "noise": jnp.exp,
    "velocity": lambda log_snr: 1 + jnp.exp(log_snr),
    "min_snr": lambda log_snr: jnp.minimum(jnp.exp(log_snr), 5.0),
}


def denoising(model: Model, schedule: str = "cosine", steps: int = 1000, weighting: str = "noise") -> Loss:
    """The denoising loss, a mean over dimensions.

    Args:
        model: needs `denoise`.
        schedule: a name in inference.denoising.SCHEDULES; the model must have the same.
        steps: T, the number of noise levels; likewise.
        weighting: the prediction whose squared error is the loss ("noise" is the simple loss), or "min_snr".

    Returns:
        A Loss with the terms "loss" and "x0", the squared error of x_0.

    Raises:
        TypeError: the model lacks the capability.
        ValueError: an unknown schedule or weighting.
    """
    (denoise,) = require(model, "denoise", by="denoising")
    chain = diffusion.schedule(schedule, steps)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}; one of {', '.join(WEIGHTINGS)}")

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        time_key, noise_key, net_key = jax.random.split(key, 3)
        x_0 = batch["x"]
        t = even_times(time_key, x_0.shape[0], steps).astype(x_0.dtype)
        x_t = diffusion.diffuse(chain, x_0, t, jax.random.normal(noise_key, x_0.shape, x_0.dtype))
        error = (x_0 - denoise(params, net_key, x_t, t, batch.get("cond"))) ** 2
        error = error.mean(tuple(range(1, x_0.ndim)))
        return {"loss": WEIGHTINGS[weighting](chain.log_snr(t)) * error, "x0": error}

    return per_example(terms)


def even_times(key: Key, n: int, steps: int) -> Array:
    """n times in {1/T, ..., 1}, each uniform, together spread evenly, which lowers the loss's variance: [n]."""
    u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
    return (jnp.floor(u * steps) + 1) / steps
