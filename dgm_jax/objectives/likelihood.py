"""Maximum likelihood."""

from __future__ import annotations

from dgm_jax.objectives import require
from dgm_jax.training.learners import per_example
from dgm_jax.types import Batch, Key, Loss, Metrics, Model, Params


def mle(model: Model) -> Loss:
    """The negative log-likelihood, per example in nats.

    Minimizing its mean over data minimizes KL(data | model).
    """
    (log_prob,) = require(model, "log_prob", by="mle")

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        nll = -log_prob(params, key, batch)
        return {"loss": nll, "nll": nll}

    return per_example(terms)
