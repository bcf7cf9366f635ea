"""The records of the project: NamedTuples of pure functions, and nothing else.

Shapes: B examples in a batch, `event` the shape of one example. Log-probabilities are in nats and
per example, [B]; only a Loss reduces. `key=None` means deterministic: no dropout, no mask sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Array = jax.Array
Key = jax.Array  # typed: jax.random.key
PyTree = Any
Params = Any  # a pytree of arrays; entries under params["buffers"] are not trained
# "x": [B, *event], floating point, 0 where it is not observed; optional "cond": pytree of [B, ...]; "mask": [B],
# 0 = padding; "observed": like x, 1 = given; "length": [B]
Batch = dict[str, Any]
Metrics = dict[str, Array]  # scalars; nats unless the name says otherwise


class State(NamedTuple):
    """With the data position, which is a function of `step`, all that a checkpoint holds."""

    step: Array  # int32 []
    params: Params  # what Model.init returned; for a game one entry a player
    opt: PyTree = ()
    # the learner's memory. Entries under carry["chains"] are per example, [chains, ...], and split like a batch; of the
    # others, micro-batches and devices each make their own, and floats are averaged
    carry: PyTree = ()
    ema: PyTree = ()  # averaged params without buffers; () where there is no averaging


class Learner(NamedTuple):
    """The one thing that the training loop knows."""

    init: Callable[[Key, Batch], State]
    step: Callable[[State, Key, Batch], tuple[State, Metrics]]  # pure; folds state.step into the run's key


class Out(NamedTuple):
    """What a loss gives besides its value."""

    metrics: Metrics
    carry: PyTree = ()
    buffers: PyTree = None  # new values of params["buffers"]
    examples: PyTree = ()  # what `Loss.update` is to see of the batch: leaves [B, ...]


class Loss(NamedTuple):
    """What a player descends."""

    init: Callable[[Params, Key, Batch], PyTree]  # the first carry; () where the loss has no memory
    apply: Callable[[Params, PyTree, Key, Batch], tuple[Array, Out]]
    # (params, carry, key, examples) -> Out: once a step, from Out.examples of the whole batch, whatever the
    # micro-batches and devices; for statistics that must be the global batch's
    update: Callable[[Params, PyTree, Key, PyTree], Out] | None = None


class Player(NamedTuple):
    """Descends `loss` in its own params[name]; sees all players' params."""

    loss: Loss
    tx: optax.GradientTransformation
    every: int = 1


class Counts(NamedTuple):
    """What EM alternates: expected sufficient statistics, and the parameters that they maximize."""

    expect: Callable[[Params, Key, Batch], tuple[PyTree, Array]]
    maximize: Callable[[PyTree], Params]


class Model(NamedTuple):
    """Capabilities; None where the family has none. Generic code asks for these, never for a name."""

    init: Callable[[Key, Batch], Params]
    # (params, key, batch) -> [B]: exact log p(x | cond)
    log_prob: Callable[..., Array] | None = None
    # (params, key, batch) -> [B, *event]: log p(x_d | x_<d, cond); they sum to log_prob
    log_conditionals: Callable[..., Array] | None = None
    # (params, key, batch) -> [B, *event]: E[x_d | x_<d, cond]
    predict: Callable[..., Array] | None = None
    # (params, key, batch) -> (z, log_q [B]): one draw z ~ q(z | x). With log_joint it makes every bound
    draw: Callable[..., tuple[PyTree, Array]] | None = None
    # (params, z, batch) -> [B]: log p(x, z)
    log_joint: Callable[..., Array] | None = None
    # (params, z, batch) -> [B]: log p(z | cond), the part of log_joint that does not read x
    log_prior: Callable[..., Array] | None = None
    # (params, z, batch) -> [B]: log q(z | x) of a given z; estimators that cut its gradient need it (STL, DReG)
    log_posterior: Callable[..., Array] | None = None
    # (params, key, batch) -> (rates [B, G], distortion [B]) of one draw: KL(q | p) of G groups of latents, or unbiased
    # estimates, and -log p(x | z). Their sum has minus the ELBO as its mean
    rate_distortion: Callable[..., tuple[Array, Array]] | None = None
    # (params, key, n, cond=None, temperature=1.) -> (z, x [n, *event]) ~ p(x, z): z is an exact draw of p(z | x)
    dream: Callable[..., tuple[PyTree, Array]] | None = None
    # (temperature, kind="concrete") -> a Model of the same params whose discrete z are relaxed, so that gradients pass
    # through draws: "concrete", "soft" or "straight_through", as models/latent/units.py says
    relax: Callable[..., Model] | None = None
    # (params, key, batch) -> [B]: -log p(x) + const
    energy: Callable[..., Array] | None = None
    # (params, key) -> (log Z [], its standard error []; 0 where exact)
    log_partition: Callable[..., tuple[Array, Array]] | None = None
    # (params, key, chains [C, *event]) -> chains: one sweep that leaves p invariant
    gibbs: Callable[..., Array] | None = None
    # (params, key, x_t, t [B], cond) -> like x_t: E[x_0 | x_t]
    denoise: Callable[..., Array] | None = None
    # (params, key, batch) -> [B]: the critic's unbounded output
    critic: Callable[..., Array] | None = None
    # (params, key, batch) -> (statistics, log-likelihood [B]); statistics are sums over the unmasked examples
    expect: Callable[..., tuple[PyTree, Array]] | None = None
    # (statistics) -> params
    maximize: Callable[[PyTree], Params] | None = None
    # (params, key, n, cond=None, temperature=1.) -> [n, *event]
    sample: Callable[..., Array] | None = None
    # (params, key, n, cond=None, temperature=1.) -> [n, stages, *event]: how the samples of that key come about. The
    # last stage is the sample, or the mean that it is drawn around
    stages: Callable[..., Array] | None = None
    # (params, key, batch with "observed") -> like x: draws what is not observed
    complete: Callable[..., Array] | None = None
    # (params, key, n, cond=None, temperature=1.) -> codes that decode takes, drawn from the model's prior
    prior: Callable[..., PyTree] | None = None
    # (params, key, batch) -> codes: features, latents or indices
    encode: Callable[..., PyTree] | None = None
    # (params, key, codes, cond=None) -> like x: the mean image of the codes
    decode: Callable[..., Array] | None = None
    # what x the likelihood is of: "binary", "levels" and "tokens" have probabilities, "real" a density; None: any
    support: str | None = None
    # True: where a batch has "observed", whatever takes the batch neither reads nor scores the other dimensions. None:
    # `complete` alone reads it
    observed: bool | None = None
