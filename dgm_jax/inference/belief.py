"""Exact inference in hidden Markov models, in log space, by scans over time.

    p(z, x) = p(z_0) prod_t p(z_t | z_t-1) prod_t p(x_t | z_t),   z_t one of S states

Every function takes log p(z_0) [S], log p(z_t | z_t-1) [S, S] (a row for each state that is left) and the evidence
log p(x_t | z_t) [B, T, S] of a batch of sequences. A step whose evidence is 0 for all states is unobserved, so that
padding at the end changes no probability before it. The batch axis is explicit, not left to vmap, so that a step of
all sequences is one matrix product; where that would underflow, the step is done by sums of logarithms instead.
Rabiner 1989, A tutorial on hidden Markov models.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.types import Array, Key

EXACT = jax.lax.Precision.HIGHEST  # accelerators round factors by default, and errors add up over time


class Filtered(NamedTuple):
    """What the forward pass knows of the states."""

    log_predicted: Array  # [B, T, S]: log p(z_t | x_<t)
    log_filtered: Array  # [B, T, S]: log p(z_t | x_<=t)
    log_evidence: Array  # [B, T]: log p(x_t | x_<t); its sum over t is log p(x)


class Smoothed(NamedTuple):
    """What both passes know of the states."""

    log_prob: Array  # [B]: log p(x)
    log_marginals: Array  # [B, T, S]: log p(z_t | x)
    transitions: Array  # [S, S]: sum of weight * p(z_t-1, z_t | x) over sequences and steps


def forward(log_initial: Array, log_transition: Array, evidence: Array) -> Filtered:
    """The filter: beliefs about each state from the observations up to it."""

    def step(log_predicted: Array, evidence: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        joint = log_predicted + evidence
        log_evidence = jax.nn.logsumexp(joint, axis=-1)
        # an impossible observation leaves no state: -inf, and not the NaN of inf - inf
        log_filtered = joint - jnp.where(jnp.isfinite(log_evidence), log_evidence, 0)[:, None]
        return _log_matmul(log_filtered, log_transition), (log_predicted, log_filtered, log_evidence)

    start = jnp.broadcast_to(log_initial, (evidence.shape[0], *log_initial.shape))
    _, steps = jax.lax.scan(step, start, jnp.swapaxes(evidence, 0, 1))
    return Filtered(*(jnp.swapaxes(a, 0, 1) for a in steps))


def smooth(log_initial: Array, log_transition: Array, evidence: Array, weights: Array | None = None) -> Smoothed:
    """Forward-backward: beliefs about each state and its predecessor from all observations.

    Args:
        log_initial, log_transition, evidence: as everywhere here.
        weights: [B, T], how much of the transition to each step is counted; the first column is not used. One 1
            among zeros gives the pairwise marginal of that step; None counts all.
    """
    weights = jnp.ones_like(evidence[..., 0]) if weights is None else weights.astype(evidence.dtype)
    _, log_filtered, log_evidence = forward(log_initial, log_transition, evidence)
    # log p(x_t | z_t) - log p(x_t | x_<t): with it the messages stay of order one
    ratio = evidence - log_evidence[..., None]

    def step(carry: tuple[Array, Array], at: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        message, transitions = carry
        ratio, weight, log_filtered = at
        arriving = ratio + message
        transitions += _transitions(weight, log_filtered, log_transition, arriving)
        message = _log_matmul(arriving, log_transition.T)
        return (message, transitions), message

    last = jnp.zeros_like(evidence[:, 0]), jnp.zeros_like(log_transition)
    arrivals = tuple(jnp.swapaxes(a, 0, 1) for a in (ratio[:, 1:], weights[:, 1:], log_filtered[:, :-1]))
    (_, transitions), messages = jax.lax.scan(step, last, arrivals, reverse=True)
    messages = jnp.concatenate([jnp.swapaxes(messages, 0, 1), last[0][:, None]], axis=1)
    return Smoothed(log_evidence.sum(-1), log_filtered + messages, transitions)


def viterbi(
    log_initial: Array, log_transition: Array, evidence: Array, length: Array | None = None
) -> tuple[Array, Array]:
    """The most probable paths of states.

    Args:
        log_initial, log_transition, evidence: as everywhere here.
        length: [B] steps that count; past them a path stands still. None for all.

    Returns:
        (paths int32 [B, T], log p(path, x) [B]).
    """
    size, steps, states = evidence.shape
    length = jnp.full(size, steps) if length is None else length
    counts = jnp.arange(1, steps)[:, None] < length[None]

    def best(score: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        evidence, counts = at
        arriving = score[:, :, None] + log_transition[None]
        score = jnp.where(counts[:, None], arriving.max(1) + evidence, score)
        return score, jnp.where(counts[:, None], arriving.argmax(1), jnp.arange(states)[None])

    def follow(state: Array, previous: Array) -> tuple[Array, Array]:
        state = jnp.take_along_axis(previous, state[:, None], axis=1)[:, 0]
        return state, state

    score, previous = jax.lax.scan(best, log_initial[None] + evidence[:, 0], (jnp.swapaxes(evidence, 0, 1)[1:], counts))
    last = score.argmax(-1)
    _, paths = jax.lax.scan(follow, last, previous, reverse=True)
    return jnp.concatenate([paths, last[None]]).T, score.max(-1)


def sample_states(key: Key, log_filtered: Array, log_transition: Array) -> Array:
    """A path z ~ p(z | x) for each sequence, int32 [B, T], backwards from the filter's beliefs [B, T, S]."""

    def step(state: Array, at: tuple[Key, Array]) -> tuple[Array, Array]:
        key, log_filtered = at
        state = jax.random.categorical(key, log_filtered + log_transition.T[state])
        return state, state

    log_filtered = jnp.swapaxes(log_filtered, 0, 1)
    keys = jax.random.split(key, log_filtered.shape[0])
    last = jax.random.categorical(keys[-1], log_filtered[-1])
    _, paths = jax.lax.scan(step, last, (keys[:-1], log_filtered[:-1]), reverse=True)
    return jnp.concatenate([paths, last[None]]).T


def _log_matmul(log_a: Array, log_b: Array) -> Array:
    """log(exp(log_a) @ exp(log_b)) for [B, S] and [S, S], exact for entries of any size."""
    peak = log_a.max(-1, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    product = jnp.matmul(jnp.exp(log_a - peak), jnp.exp(log_b), precision=EXACT)
    # what underflowed in a sum is less than one tiny number a term
    info = jnp.finfo(product.dtype)
    sound = product > log_b.shape[0] * info.tiny / info.eps
    quick = jnp.log(jnp.where(sound, product, 1)) + peak
    exact = lambda: jax.nn.logsumexp(log_a[:, :, None] + log_b[None], axis=1)  # noqa: E731
    return jax.lax.cond(jnp.all(sound), lambda: quick, exact)


def _transitions(weight: Array, log_filtered: Array, log_transition: Array, arriving: Array) -> Array:
    """Sum over sequences of weight [B] * exp(log_filtered_i + log_transition_ij + arriving_j), [S, S]."""

    def quick() -> Array:
        leaving = weight[:, None] * jnp.exp(log_filtered)
        return jnp.exp(log_transition) * jnp.matmul(leaving.T, jnp.exp(arriving), precision=EXACT)

    def exact() -> Array:
        pairs = log_filtered[:, :, None] + log_transition[None] + arriving[:, None, :]
        return (weight[:, None, None] * jnp.exp(pairs)).sum(0)

    # a surprise of 40 nats: then probabilities too small to be represented have their share
    return jax.lax.cond(jnp.all(arriving < 40), quick, exact)
