"""Semi-amortized inference: a few steps up the ELBO of each example, from the posterior that an encoder gives.

    q_0 = N(m_0, s_0^2) of the encoder        q_T = N(m_T, s_T^2),  by T steps at the rates r_t = r / sqrt(t)
    log s <- log s + asinh(r_t dL/dlog s) / 2      m <- m + r_t s^2 dL/dm      L = E_q[log p(x, z)] + H(q)

The steps are natural gradients: where log p(x, z) is quadratic with the diagonal precision P, dL/dlog s is 1 - P s^2,
and m goes r_t P s^2 of its way. The asinh keeps that stable where s is far off: the s^2 of a q_0 that is too broad
shrinks by 2 r_t P s^2, whatever that is, before the mean moves at the new scale. Gradients pass through all steps, so
that a model is trained for the posteriors that it will have.

The expectation is over fixed nodes, +-e_1, +-e_2, ..., other ones in every step, and the same for all examples: a
quadrature rule, whose errors the falling rates average out, and not draws. q_T is a function of the parameters and x
alone. What is estimated under q_T has true draws, so that bounds stay bounds however well or badly the rule does. Each
call of a model's draw or log_posterior refines anew; annealed importance sampling, which calls them in every step, is
therefore cheaper from the prior.

References: Kim et al. 2018, arXiv 1802.02550, algorithm 1, by gradient descent; the gap that is closed: Cremer, Li &
Duvenaud 2018, arXiv 1801.03558; natural gradients of a diagonal normal: Khan et al. 2018, arXiv 1806.04854.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.models.latent.posteriors import split
from dgm_jax.types import Array

PAIRS = 2  # of nodes, in every step


def quadrature(steps: int, latent: int, pairs: int = PAIRS) -> np.ndarray:
    """Nodes of the standard normal distribution in `latent` dimensions, equally weighted: [steps, 2 pairs, latent].

    They are normal numbers of a fixed seed, in opposite pairs and with the mean square 1 in each dimension: exact in
    every step for what is quadratic in the dimensions one by one; for products of two, on average over the steps.
    """
    half = np.random.default_rng(0).normal(size=(steps, pairs, latent))
    half /= np.sqrt((half**2).mean(axis=1, keepdims=True))
    return np.concatenate([half, -half], axis=1)


def ascend(log_joint: Callable[[Array], Array], raw: Array, nodes: np.ndarray, rate: float) -> Array:
    """Refine diagonal normal posteriors.

    Args:
        log_joint: z [B, L] -> log p(x, z) [B], in nats.
        raw: means and log standard deviations of the encoder, [B, 2 L], as `posteriors.diagonal` takes them.
        nodes: of `quadrature`, [steps, nodes, L].
        rate: r in (0, 1], of the first step.

    Returns:
        The same after the steps, [B, 2 L].
    """
    latent = raw.shape[-1] // 2

    def bound(raw: Array, noise: Array) -> Array:
        """The ELBOs without a constant, added up over the examples."""
        loc, log_scale = split(raw, latent)
        z = loc[None] + jnp.exp(log_scale)[None] * noise[:, None]
        return jax.vmap(log_joint)(z).mean(0).sum() + log_scale.sum()

    def step(raw: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        noise, rate = at
        (loc, log_scale), (up_loc, up_scale) = split(raw, latent), split(jax.grad(bound)(raw, noise), latent)
        log_scale += jnp.arcsinh(rate * up_scale) / 2
        loc += rate * jnp.exp(2 * log_scale) * up_loc
        return jnp.concatenate([loc, log_scale], axis=-1), None

    rates = rate / np.sqrt(1 + np.arange(len(nodes)))
    return jax.lax.scan(step, raw, (jnp.asarray(nodes, raw.dtype), jnp.asarray(rates, raw.dtype)))[0]
