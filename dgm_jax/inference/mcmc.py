"""Markov chain Monte Carlo: Metropolis-Hastings, Hamiltonian transitions, a driver for any kernel, and diagnostics.

A kernel is (key, state) -> state, for one chain or for an array of chains. A Model's Gibbs sweep is
the kernel `partial(model.gibbs, params)`. For NUTS, MALA and adaptation use blackjax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.types import Array, Key, PyTree

Kernel = Callable[[Key, PyTree], PyTree]


class Metropolis(NamedTuple):
    """State of one Metropolis-Hastings chain."""

    x: PyTree
    log_prob: Array  # [], of x, up to a constant
    accepted: Array  # [] int32, proposals accepted so far


def metropolis_init(log_prob: Callable[[PyTree], Array], x: PyTree) -> Metropolis:
    """The state that starts a chain at x."""
    return Metropolis(x, log_prob(x), jnp.zeros((), jnp.int32))


def metropolis_hastings(
    log_prob: Callable[[PyTree], Array], propose: Callable[[Key, PyTree], tuple[PyTree, Array | float]]
) -> Callable[[Key, Metropolis], Metropolis]:
    """The Metropolis-Hastings kernel of one chain; vmap it over (keys, states) for many.

    Args:
        log_prob: x -> [], up to a constant; -inf outside the support.
        propose: (key, x) -> (y, log q(x | y) - log q(y | x)); the second is 0 for a symmetric proposal.

    Returns:
        (key, Metropolis) -> Metropolis. A proposal whose acceptance ratio is NaN is rejected.
    """

    def kernel(key: Key, state: Metropolis) -> Metropolis:
        key_propose, key_accept = jax.random.split(key)
        x, log_correction = propose(key_propose, state.x)
        proposed = Metropolis(x, log_prob(x), state.accepted + 1)
        log_ratio = proposed.log_prob - state.log_prob + log_correction
        # -log of a uniform variable is exponential
        accept = -jax.random.exponential(key_accept, dtype=log_ratio.dtype) < log_ratio
        return jax.tree.map(lambda new, old: jnp.where(accept, new, old), proposed, state)

    return kernel


def hmc(
    log_prob: Callable[[PyTree], Array], step_size: Array | float, variance: Array, leapfrog: int
) -> Callable[[Key, PyTree], tuple[PyTree, Array]]:
    """A transition of Hamiltonian Monte Carlo, of one chain (Neal 2011, arXiv 1206.1901).

    Args:
        log_prob: x -> [], up to a constant, differentiable.
        step_size: [], of the leapfrog integrator, in units of the standard deviations.
        variance: [D], of the entries of x, its leaves one after the other: the inverse of the masses. A guess does.
        leapfrog: steps in a trajectory.

    Returns:
        (key, x) -> (x, the probability [] with which the end of the trajectory was accepted). It is reversible.
    """
    import blackjax  # here, for it takes a quarter of the time in which a command starts

    algorithm = blackjax.hmc(log_prob, step_size, variance, leapfrog)

    def transition(key: Key, x: PyTree) -> tuple[PyTree, Array]:
        state, info = algorithm.step(key, algorithm.init(x))
        return state.position, info.acceptance_rate

    return transition


def run(kernel: Kernel, key: Key, state: PyTree, steps: int, first: int | Array = 0) -> PyTree:
    """The state after `steps` steps; step t has the key fold_in(key, first + t)."""

    def step(state: PyTree, t: Array) -> tuple[PyTree, None]:
        return kernel(jax.random.fold_in(key, t), state), None

    return jax.lax.scan(step, state, first + jnp.arange(steps))[0]


def sample(kernel: Kernel, key: Key, state: PyTree, n: int, thin: int = 1) -> tuple[PyTree, PyTree]:
    """Run n * thin steps and keep every thin-th state; thinning changes nothing of the chain itself.

    Returns:
        (last state, the n kept states stacked: leaves [n, ...]).
    """

    def keep(state: PyTree, i: Array) -> tuple[PyTree, PyTree]:
        state = run(kernel, key, state, thin, first=i * thin)
        return state, state

    return jax.lax.scan(keep, state, jnp.arange(n))


def split_rhat(chains: Array) -> Array:
    """Potential scale reduction of the halved chains, 1 at convergence: [chains, n >= 4, ...] -> [...].

    Where no chain moves it is infinite if they differ, and else NaN. Source: Vehtari et al. 2021, arXiv 1903.08008,
    section 3.1, not rank-normalised.
    """
    halves = _halve(chains)
    n = halves.shape[1]
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    return jnp.sqrt((n - 1) / n + between / within)


def effective_sample_size(chains: Array) -> Array:
    """How many independent draws the mean over all chains is worth: [chains, n >= 4, ...] -> [...].

    Autocorrelations of the halved chains, summed over Geyer's initial monotone sequence (Vehtari et al. 2021,
    arXiv 1903.08008, section 3.2). NaN where no chain moves.
    """
    halves = _halve(chains)
    m, n = halves.shape[:2]
    centred = halves - jnp.mean(halves, axis=1, keepdims=True)
    # padded to 2 n, so that the circular correlation does not wrap
    spectrum = jnp.fft.rfft(centred, 2 * n, axis=1)
    covariance = jnp.mean(jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * n, axis=1)[:, :n], axis=0) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    correlation = 1 - (within[None] - covariance) / total[None]
    correlation = correlation.at[0].set(1)
    pairs = correlation[0 : n - 1 : 2] + correlation[1:n:2]
    # the sums of neighbours are positive and fall for a reversible chain; the rest is noise
    positive = jnp.cumprod(pairs > 0, axis=0)
    time = 2 * jnp.sum(jax.lax.cummin(pairs, axis=0) * positive, axis=0) - 1
    # anticorrelated chains may beat independent draws, but not without limit
    return jnp.where(within > 0, m * n / jnp.maximum(time, 1 / math.log10(m * n)), jnp.nan)


def _halve(chains: Array) -> Array:
    """[chains, n, ...] -> [2 chains, n // 2, ...], the middle state of an odd n dropped."""
    half = chains.shape[1] // 2
    return jnp.concatenate([chains[:, :half], chains[:, -half:]])
