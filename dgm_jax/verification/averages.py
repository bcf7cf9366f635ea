"""Means of noisy pairs over as many keys as it takes to tell whether they are equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dgm_jax.types import Array, Key
from dgm_jax.verification.bounds import SIGMAS
from dgm_jax.verification.space import NotApplicable

FEW, MANY = 32, 2048  # times as many, over which a random gradient is averaged, at least and at most
NOISE = 0.01  # relative error that is small enough to judge by
LOUD = 0.5  # relative deviation that has to show, for noise to say nothing against a gradient


class Averaged(NamedTuple):
    """The means of two quantities over keys, each [groups]."""

    claimed: np.ndarray
    measured: np.ndarray
    gap: np.ndarray
    error: np.ndarray  # standard error of the gap
    scale: float  # root mean square of what is measured

    def off(self, exact: float) -> np.ndarray:
        """The gap as a multiple of what noise, and the relative error `exact`, explain."""
        return np.abs(self.gap) / np.maximum(SIGMAS * self.error, exact * self.scale)

    def equal(self, exact: float) -> bool:
        """Whether noise explains the gap; NotApplicable where it would explain one of half of what is measured too."""
        equal = bool(self.off(exact).max() <= 1)
        if equal and SIGMAS * self.error.max() > LOUD * self.scale:
            raise NotApplicable(f"gradients spread too far to tell: {self.scale:.2g} +- {self.error.max():.1g}")
        return equal


def average(
    pair: Callable[[Key, int], tuple[Array, Array]],
    seed: int,
    least: int,
    exact: float,
    at_once: int,
    scale: float = 0.0,
) -> Averaged:
    """Average a pair of [groups] over as many times `at_once` keys as its noise asks for.

    Deviations are judged relative to `scale`, or to what is measured if that is more.
    """
    rows: list[np.ndarray] = []
    while True:
        keys = jax.random.split(jax.random.key(seed + len(rows)), at_once)
        rows.append(np.stack([np.asarray(side) for side in pair(keys, len(rows))]))
        claimed, measured = np.mean(rows, axis=0)
        gaps = np.asarray(rows)[:, 0] - np.asarray(rows)[:, 1]
        scale = max(math.sqrt((measured**2).mean()), scale, 1e-8)
        error = gaps.std(0) / math.sqrt(max(len(rows) - 1, 1))
        found = Averaged(claimed, measured, gaps.mean(0), error, scale)
        quiet = len(rows) >= least and SIGMAS * error.max() <= exact * scale
        decided = len(rows) >= FEW and (error.max() < NOISE * scale or found.off(exact).max() > 2)
        if quiet or decided or len(rows) >= MANY:
            return found
