"""Hidden Markov model of a binary image, read a row at a time.

    p(x) = sum_z p(z_0) prod_t p(z_t | z_t-1) prod_t prod_w mu_{z_t w}^x_tw (1 - mu_{z_t w})^(1 - x_tw)

The first axis of an event is time; the others are one binary vector of W dimensions. Sums over paths are
exact by forward-backward, and with them likelihood, completion and the E-step (Baum-Welch). Rabiner 1989,
A tutorial on hidden Markov models. The parameters are logits: `mle` trains them by gradients as well.

Measured: 18.5 nats on the thresholded digits, 128 states (experiments/digits/hmm).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from dgm_jax.distributions import bernoulli_log_prob, bernoulli_sample
from dgm_jax.inference import belief
from dgm_jax.models.graphical import emission
from dgm_jax.numerics import safe_log
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree


def make(
    *,
    shape: tuple[int, ...],
    states: int = 32,
    strength: float = 1.0,
    chain_strength: float = 0.1,
    codes: str = "marginals",
) -> Model:
    """Hidden Markov model over binary events.

    Args:
        shape: of an event, time first.
        states: S.
        strength: prior of a state's dimension, in observations of its mean; 0 for maximum likelihood.
        chain_strength: prior of an initial or a next state, in transitions.
        codes: what encode gives: "marginals" p(z_t | x), [B, T, S], or the most probable "path", int [B, T].

    Returns:
        init, log_prob, log_conditionals, predict, expect, maximize, sample, complete, encode, decode (the mean image).
        Where the batch has "observed" or "length", all but sample and decode leave out the rest.

    Raises:
        ValueError: on unknown codes.
    """
    if codes not in ("marginals", "path"):
        raise ValueError(f"codes is 'marginals' or 'path', not {codes!r}")
    steps, width = shape[0], math.prod(shape[1:])

    def counted(batch: Batch) -> Array:
        """bool [B, T]: the steps that are not padding."""
        size = batch["x"].shape[0]
        length = batch.get("length", jnp.full(size, steps))
        mask = batch.get("mask", jnp.ones(size))
        return (jnp.arange(steps)[None] < length[:, None]) & (mask != 0)[:, None]

    def rows(batch: Batch) -> tuple[Array, Array]:
        """x [B * T, W] and what is observed of it; padding may hold anything."""
        x = batch["x"].reshape(-1, width)
        observed = jnp.broadcast_to(counted(batch).reshape(-1)[:, None], x.shape)
        if "observed" in batch:
            observed &= batch["observed"].reshape(x.shape) != 0
        return jnp.where(observed, x, 0), observed.astype(x.dtype)

    def init(key: Key, batch: Batch) -> Params:
        x, observed = rows(batch)
        mask = counted(batch).reshape(-1).astype(x.dtype)
        return {
            "initial": jnp.zeros(states, x.dtype),
            "transition": jnp.zeros((states, states), x.dtype),
            "emission": emission.from_rows(key, states, x, observed, mask),
        }

    def chain(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        """The arguments of inference.belief, the last one [B, T, S]."""
        evidence = emission.log_likelihood(params["emission"], *rows(batch))
        return (
            jax.nn.log_softmax(params["initial"]),
            jax.nn.log_softmax(params["transition"]),
            evidence.reshape(-1, steps, states),
        )

    def forward(params: Params, batch: Batch) -> belief.Filtered:
        return belief.forward(*chain(params, batch))

    def log_prob(params: Params, key: Key | None, batch: Batch) -> Array:
        return forward(params, batch).log_evidence.sum(-1)

    def with_state(params: Params, batch: Batch) -> tuple[Array, Array]:
        """log p(z_t | rows before t) [B * T, 1, S], and log p(x_tw | z_t) [B * T, W, S]."""
        x, observed = rows(batch)
        logits = params["emission"].T[None]  # [1, W, S]
        pixel = observed[..., None] * bernoulli_log_prob(*jnp.broadcast_arrays(x[..., None], logits))
        return forward(params, batch).log_predicted.reshape(-1, 1, states), pixel

    def log_conditionals(params: Params, key: Key | None, batch: Batch) -> Array:
        """log p(x_tw | rows before t, x_t,<w): the belief about z_t, sharpened pixel by pixel."""
        predicted, pixel = with_state(params, batch)
        so_far = jax.nn.logsumexp(predicted + jnp.cumsum(pixel, axis=1), axis=-1)  # log p(x_t,<=w | x_<t)
        return jnp.diff(so_far, axis=-1, prepend=jnp.zeros_like(so_far[..., :1])).reshape(-1, *shape)

    def predict(params: Params, key: Key | None, batch: Batch) -> Array:
        predicted, pixel = with_state(params, batch)
        before = jnp.cumsum(pixel, axis=1) - pixel
        belief_of = jax.nn.softmax(predicted + before)  # p(z_t | rows before t, x_t,<w)
        return (belief_of * jax.nn.sigmoid(params["emission"].T)[None]).sum(-1).reshape(-1, *shape)

    def expect(params: Params, key: Key, batch: Batch) -> tuple[PyTree, Array]:
        valid = counted(batch)
        smoothed = belief.smooth(*chain(params, batch), valid)
        weights = jnp.where(valid[..., None], jnp.exp(smoothed.log_marginals), 0)
        statistics = {
            "initial": weights[:, 0].sum(0),
            "transition": smoothed.transitions,
            **emission.statistics(weights.reshape(-1, states), *rows(batch)),
        }
        return statistics, smoothed.log_prob

    def maximize(statistics: PyTree) -> Params:
        return {
            "initial": safe_log(statistics["initial"] + chain_strength),
            "transition": safe_log(statistics["transition"] + chain_strength),
            "emission": emission.maximize(statistics["ones"], statistics["seen"], strength),
        }

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        chain_key, pixel_key = jax.random.split(key)
        initial, transition = params["initial"] / temperature, params["transition"] / temperature

        def step(logits: Array, key: Key) -> tuple[Array, Array]:
            state = jax.random.categorical(key, logits)
            return transition[state], state

        keys = jax.random.split(chain_key, steps)
        start = jnp.broadcast_to(initial, (n, states))
        _, path = jax.lax.scan(step, start, keys)
        logits = params["emission"][path.T]
        return bernoulli_sample(pixel_key, logits, temperature).reshape(n, *shape)

    def complete(params: Params, key: Key, batch: Batch) -> Array:
        """Draws the unobserved pixels from their exact conditional: forward filter, backward sampling."""
        path_key, pixel_key = jax.random.split(key)
        filtered = forward(params, batch).log_filtered
        transition = jax.nn.log_softmax(params["transition"])
        path = belief.sample_states(path_key, filtered, transition)
        drawn = bernoulli_sample(pixel_key, params["emission"][path]).reshape(batch["x"].shape)
        return jnp.where(batch["observed"] != 0, batch["x"], drawn)

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        if codes == "marginals":
            return jnp.exp(belief.smooth(*chain(params, batch)).log_marginals)
        return belief.viterbi(*chain(params, batch), counted(batch).sum(-1))[0]

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        weights = jax.nn.one_hot(codes, states) if codes.ndim == 2 else codes
        return (weights @ jax.nn.sigmoid(params["emission"])).reshape(-1, *shape)

    return Model(
        init,
        log_prob=log_prob,
        log_conditionals=log_conditionals,
        predict=predict,
        expect=expect,
        maximize=maximize,
        sample=sample,
        complete=complete,
        encode=encode,
        decode=decode,
        support="binary",
        observed=True,
    )
