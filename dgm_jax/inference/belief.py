"""Exact inference in hidden Markov models: one sequence, in log space, by scans over its steps.

    p(z, x) = p(z_0) prod_t p(z_t | z_t-1) prod_t p(x_t | z_t),   z_t one of S states

Every function takes log p(z_0) [S], log p(z_t | z_t-1) [S, S] (a row for each state that is left) and the
evidence log p(x_t | z_t) [T, S]. A step whose evidence is 0 for all states is unobserved, so that padding at the
end changes no probability before it. Use vmap for a batch. Rabiner 1989, A tutorial on hidden Markov models.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.types import Array, Key


class Filtered(NamedTuple):
    """What the forward pass knows of the states."""

    log_predicted: Array  # [T, S]: log p(z_t | x_<t)
    log_filtered: Array  # [T, S]: log p(z_t | x_<=t)
    log_evidence: Array  # [T]: log p(x_t | x_<t); its sum is log p(x)


class Smoothed(NamedTuple):
    """What both passes know of the states."""

    log_prob: Array  # []: log p(x)
    log_marginals: Array  # [T, S]: log p(z_t | x)
    log_pairs: Array  # [T - 1, S, S]: log p(z_t, z_t+1 | x)


def forward(log_initial: Array, log_transition: Array, evidence: Array) -> Filtered:
    """The filter: beliefs about each state from the observations up to it."""

    def step(log_predicted: Array, evidence: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        joint = log_predicted + evidence
        log_evidence = jax.nn.logsumexp(joint)
        # an impossible observation leaves no state: -inf, and not the NaN of inf - inf
        log_filtered = joint - jnp.where(jnp.isfinite(log_evidence), log_evidence, 0)
        following = jax.nn.logsumexp(log_filtered[:, None] + log_transition, axis=0)
        return following, (log_predicted, log_filtered, log_evidence)

    return Filtered(*jax.lax.scan(step, log_initial, evidence)[1])


def smooth(log_initial: Array, log_transition: Array, evidence: Array) -> Smoothed:
    """Forward-backward: beliefs about each state, and each two neighbours, from all observations."""
    _, log_filtered, log_evidence = forward(log_initial, log_transition, evidence)
    # log p(x_t | z_t) - log p(x_t | x_<t): with it the backward messages stay of order one
    ratio = evidence - log_evidence[:, None]

    def step(message: Array, ratio: Array) -> tuple[Array, Array]:
        arriving = ratio + message
        return jax.nn.logsumexp(log_transition + arriving[None, :], axis=1), arriving

    last = jnp.zeros_like(log_initial)
    _, arriving = jax.lax.scan(step, last, ratio[1:], reverse=True)
    log_pairs = log_filtered[:-1, :, None] + log_transition[None] + arriving[:, None, :]
    log_marginals = jnp.concatenate([jax.nn.logsumexp(log_pairs, axis=2), log_filtered[-1:]])
    return Smoothed(log_evidence.sum(), log_marginals, log_pairs)


def viterbi(
    log_initial: Array, log_transition: Array, evidence: Array, length: Array | None = None
) -> tuple[Array, Array]:
    """The most probable path of states.

    Args:
        log_initial, log_transition, evidence: as everywhere here.
        length: [] steps that count; past them the path stands still. None for all.

    Returns:
        (path int32 [T], log p(path, x) []).
    """
    states = jnp.arange(log_initial.shape[0])
    steps = jnp.arange(1, evidence.shape[0])
    counts = steps < (evidence.shape[0] if length is None else length)

    def best(score: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        evidence, counts = at
        arriving = score[:, None] + log_transition
        moved = arriving.max(0) + evidence
        return jnp.where(counts, moved, score), jnp.where(counts, arriving.argmax(0), states)

    score, previous = jax.lax.scan(best, log_initial + evidence[0], (evidence[1:], counts))
    last = score.argmax()
    _, path = jax.lax.scan(lambda state, back: (back[state], back[state]), last, previous, reverse=True)
    return jnp.append(path, last), score.max()


def sample_states(key: Key, log_filtered: Array, log_transition: Array) -> Array:
    """One path z ~ p(z | x), int32 [T], backwards from the filter's beliefs [T, S]."""

    def step(state: Array, at: tuple[Key, Array]) -> tuple[Array, Array]:
        key, log_filtered = at
        state = jax.random.categorical(key, log_filtered + log_transition[:, state])
        return state, state

    keys = jax.random.split(key, log_filtered.shape[0])
    last = jax.random.categorical(keys[-1], log_filtered[-1])
    _, path = jax.lax.scan(step, last, (keys[:-1], log_filtered[:-1]), reverse=True)
    return jnp.append(path, last)
