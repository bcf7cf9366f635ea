"""Objectives: functions from a Model to what a learner's constructor takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dgm_jax.types import Model


def require(model: Model, *capabilities: str, by: str) -> tuple[Callable[..., Any], ...]:
    """The named capabilities of `model`, for the objective `by`.

    Raises:
        TypeError: names the objective, what it needs and what the model has.
    """
    missing = [name for name in capabilities if getattr(model, name) is None]
    if missing:
        has = ", ".join(name for name in Model._fields if getattr(model, name) is not None)
        raise TypeError(
            f"objective {by!r} needs the capability {', '.join(map(repr, missing))}, "
            f"which this model lacks; it has: {has}. `dgm list` shows which models have it."
        )
    return tuple(getattr(model, name) for name in capabilities)
