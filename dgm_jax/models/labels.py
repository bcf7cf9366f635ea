"""Class labels as a model's condition."""

from __future__ import annotations

from dgm_jax.types import Array


def label_of(classes: int, cond: Array | None) -> Array | None:
    """The labels [B] that a model of so many classes takes from batch["cond"], or None where it has no classes.

    Raises:
        ValueError: there are classes, and no labels.
    """
    if not classes:
        return None
    if cond is None:
        raise ValueError(f"this model is conditional on {classes} classes: give the labels as `cond`")
    return cond
