"""Expected counts, for expectation-maximization."""

from __future__ import annotations

from dgm_jax.objectives import require
from dgm_jax.types import Counts, Model


def counting(model: Model) -> Counts:
    """The E-step and the M-step of a model with sufficient statistics (Dempster, Laird & Rubin 1977)."""
    return Counts(*require(model, "expect", "maximize", by="counting"))
