"""Expected counts, for expectation-maximization."""

from __future__ import annotations

from dgm_jax.objectives import require
from dgm_jax.types import Counts, Model


def counting(model: Model) -> Counts:
    """The E-step and the M-step of a model with sufficient statistics (Dempster, Laird & Rubin 1977)."""
    require(model, "expect", "maximize", by="counting")
    assert model.expect is not None and model.maximize is not None
    return Counts(model.expect, model.maximize)
