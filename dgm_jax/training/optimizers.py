"""optax optimizers and learning-rate schedules by name, from the `optimizer` section of a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def sgd(learning_rate: optax.Schedule, momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    """optax.sgd whose momentum has a number as default, as options of a config must."""
    return optax.sgd(learning_rate, momentum or None, nesterov)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": sgd,
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
}


def make(
    steps: int,
    name: str = "adam",
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    warmup: int = 0,
    final: float = 0.0,
    clip: float = 0.0,
    l2: float = 0.0,
    **options: Any,
) -> optax.GradientTransformation:
    """Build an optimizer.

    Args:
        steps: length of the run, over which the schedule decays.
        name: a key of OPTIMIZERS.
        learning_rate: the peak.
        schedule: "constant", "cosine", "linear" or "inverse_sqrt" (decays after the warm-up).
        warmup: steps of linear warm-up from 0.
        final: what "cosine" and "linear" decay to, as a share of the peak.
        clip: largest global norm of the gradient; 0 = no clipping.
        l2: of all matrices and kernels w, l2 * w is added to the gradient: that of l2 / 2 * |w|^2; 0 = none.
        **options: what the optax function takes, such as b1, b2, eps, momentum, weight_decay.

    Raises:
        ValueError: an unknown name or schedule.
        TypeError: an option that the optimizer does not take.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    if l2:
        parts.append(optax.add_decayed_weights(l2, mask=is_kernel))
    if name == "adamw":
        options = {"mask": is_kernel, **options}
    rate = learning_rate_schedule(steps, learning_rate, schedule, warmup, final)
    return optax.chain(*parts, OPTIMIZERS[name](rate, **options))


def is_kernel(params: Any) -> Any:
    """Mask of the leaves that weight decay acts on: those of two or more axes that are no bias of a value of x."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and getattr(path[-1], "key", None) not in ("bias", "offset"), params
    )


def learning_rate_schedule(
    steps: int, peak: float, schedule: str, warmup: int = 0, final: float = 0.0
) -> optax.Schedule:
    """Step -> learning rate; the arguments are those of `make`."""
    decay = max(steps - warmup, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, final),
        "linear": lambda: optax.linear_schedule(peak, peak * final, decay),
        "inverse_sqrt": lambda: lambda t: peak * jnp.sqrt(max(warmup, 1) / (t + max(warmup, 1))),
    }
    if schedule not in schedules:
        raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(schedules)}")
    after = schedules[schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
