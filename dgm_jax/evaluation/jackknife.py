"""The grouped jackknife, for statistics that are no mean over examples (Efron & Stein 1981, Ann. Stat. 9:586)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from dgm_jax.types import Array


def jackknife(
    statistic: Callable[..., ArrayLike], a: np.ndarray | Array, b: np.ndarray | Array, groups: int = 10
) -> np.ndarray:
    """Standard error of a statistic of two sets of examples: both lose a group in turn.

    Args:
        statistic: (a, b) -> a number, or an array of them.
        a: [m, ...].
        b: [n, ...].
        groups: how many; m and n are at least twice that.

    Returns:
        As the statistic.
    """
    part_a, part_b = np.arange(len(a)) % groups, np.arange(len(b)) % groups
    left = np.array([statistic(a[part_a != g], b[part_b != g]) for g in range(groups)])
    return np.sqrt((groups - 1) * left.var(axis=0))
