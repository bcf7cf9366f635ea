"""Synthetic sources whose log-density and entropy are known: what a perfect model would score.

gaussian       correlated Gaussian in the plane; closed forms
mixture        eight Gaussians on a circle; entropy by the trapezoidal rule, which is exact to rounding here
ring           radius normal, angle uniform; h = h(radius) + E[log 2 pi radius], the second by the same rule
checkerboard   uniform on eight of sixteen unit squares; h = log 8
parity         uniform over bits of even sum; (D - 1) log 2
markov         a chain of bits that stay with probability 0.8; log 2 + (T - 1) H(0.8)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, xlogy

from dgm_jax.data.dataset import NAMES, Dataset, Info, Split

Generator = np.random.Generator


class Synthetic(NamedTuple):
    """A distribution that is known."""

    info: Info  # with entropy
    draw: Callable[[Generator, int], Split]  # (generator, n) -> {"x": [n, *shape], perhaps "label": [n]}
    log_prob: Callable[[np.ndarray], np.ndarray]  # [..., *shape] -> [...], in nats, float64


def source(
    what: str,
    dir: Path,
    train: int = 10_000,
    valid: int = 2_000,
    test: int = 10_000,
    seed: int = 0,
    **options: int,
) -> Dataset:
    """Draw the splits of `synthetic:<what>`, each from its own stream of `seed`.

    Args:
      what: a key of SYNTHETIC.
      dir: not used.
      train: examples; so valid and test.
      seed: of the draws.
      options: of the distribution.
    """
    synthetic = make(what, **options)
    sizes = zip(NAMES, (train, valid, test), strict=True)
    return Dataset(
        synthetic.info,
        {
            name: synthetic.draw(np.random.Generator(np.random.Philox(key=np.array([seed, i], np.uint64))), size)
            for i, (name, size) in enumerate(sizes)
        },
    )


def make(what: str, **options: int) -> Synthetic:
    """Return the distribution of this name; ValueError if there is none."""
    if what not in SYNTHETIC:
        raise ValueError(f"unknown synthetic source {what!r}; there are: {', '.join(SYNTHETIC)}")
    return SYNTHETIC[what](**options)


def gaussian() -> Synthetic:
    """N(mean, covariance) with correlation 0.8."""
    mean, factor = np.array([0.5, -1.0]), np.array([[1.0, 0.0], [0.8, 0.6]])
    normalizer = math.log(2 * math.pi) + math.log(np.linalg.det(factor))

    def draw(generator: Generator, n: int) -> Split:
        return {"x": (mean + generator.standard_normal((n, 2)) @ factor.T).astype(np.float32)}

    def log_prob(x: np.ndarray) -> np.ndarray:
        z = (np.asarray(x, np.float64) - mean) @ np.linalg.inv(factor).T
        return -0.5 * np.square(z).sum(-1) - normalizer

    return Synthetic(_plane("gaussian", 1.0 + normalizer), draw, log_prob)


def mixture(modes: int = 8) -> Synthetic:
    """Equal Gaussians with standard deviation 0.2 on a circle of radius 2; the label is the Gaussian."""
    scale = 0.2
    angles = 2 * np.pi * np.arange(modes) / modes
    means = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    def draw(generator: Generator, n: int) -> Split:
        label = generator.integers(modes, size=n, dtype=np.int32)
        x = means[label] + scale * generator.standard_normal((n, 2))
        return {"x": x.astype(np.float32), "label": label}

    def log_prob(x: np.ndarray) -> np.ndarray:
        square = np.square((np.asarray(x, np.float64)[..., None, :] - means) / scale).sum(-1)
        return logsumexp(-0.5 * square, axis=-1) - math.log(modes * 2 * math.pi * scale**2)

    line = np.linspace(-4, 4, 401)  # ten standard deviations beyond the means; steps of a tenth of one
    logs = log_prob(np.stack(np.meshgrid(line, line), axis=-1))
    entropy = -float((np.exp(logs) * logs).sum() * (line[1] - line[0]) ** 2)
    return Synthetic(_plane("mixture", entropy)._replace(classes=modes), draw, log_prob)


def ring() -> Synthetic:
    """Radius N(2, 0.1), angle uniform: a density that is thin across and has a hole."""
    mean, scale = (
        2.0,
        0.1,
    )  # zero is twenty standard deviations off: that the radius is positive costs nothing

    def log_radius(radius: np.ndarray) -> np.ndarray:
        return -0.5 * np.square((radius - mean) / scale) - math.log(scale * math.sqrt(2 * math.pi))

    def draw(generator: Generator, n: int) -> Split:
        radius = mean + scale * generator.standard_normal(n)
        angle = 2 * np.pi * generator.random(n)
        return {"x": (radius * np.stack([np.cos(angle), np.sin(angle)])).T.astype(np.float32)}

    def log_prob(x: np.ndarray) -> np.ndarray:
        radius = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
        return log_radius(radius) - np.log(2 * np.pi * np.maximum(radius, np.finfo(np.float64).tiny))

    line = np.linspace(mean - 10 * scale, mean + 10 * scale, 2001)
    logs = log_radius(line)
    entropy = -float((np.exp(logs) * (logs - np.log(2 * np.pi * line))).sum() * (line[1] - line[0]))
    return Synthetic(_plane("ring", entropy), draw, log_prob)


def checkerboard() -> Synthetic:
    """Uniform on the unit squares of [-2, 2]^2 whose corners have an even sum."""

    def draw(generator: Generator, n: int) -> Split:
        column = generator.integers(-2, 2, size=n)
        row = 2 * generator.integers(-1, 1, size=n) + column % 2
        corner = np.stack([column, row], axis=-1)
        # odd multiples of 2^-23 are exact in float32 here, so that rounding moves no point across an edge
        return {"x": (corner + (generator.integers(2**22, size=(n, 2)) + 0.5) / 2**22).astype(np.float32)}

    def log_prob(x: np.ndarray) -> np.ndarray:
        corner = np.floor(np.asarray(x, np.float64))
        inside = ((corner >= -2) & (corner < 2)).all(-1) & (corner.sum(-1) % 2 == 0)
        return np.where(inside, -math.log(8), -np.inf)

    return Synthetic(_plane("checkerboard", math.log(8)), draw, log_prob)


def parity(dims: int = 8) -> Synthetic:
    """Uniform over `dims` bits of even sum: any dims - 1 of them look like fair coins."""

    def draw(generator: Generator, n: int) -> Split:
        x = generator.integers(2, size=(n, dims), dtype=np.uint8)
        x[:, -1] = x[:, :-1].sum(axis=1) % 2
        return {"x": x}

    def log_prob(x: np.ndarray) -> np.ndarray:
        return np.where(np.asarray(x, np.int64).sum(-1) % 2 == 0, -(dims - 1) * math.log(2), -np.inf)

    return Synthetic(_bits("parity", dims, (dims - 1) * math.log(2)), draw, log_prob)


def markov(dims: int = 16) -> Synthetic:
    """A chain of `dims` bits: a fair coin, then each equal to the one before with probability 0.8."""
    stay = 0.8

    def draw(generator: Generator, n: int) -> Split:
        flips = generator.random((n, dims)) < np.r_[0.5, np.full(dims - 1, 1 - stay)]
        return {"x": (np.cumsum(flips, axis=1) % 2).astype(np.uint8)}

    def log_prob(x: np.ndarray) -> np.ndarray:
        flips = np.abs(np.diff(np.asarray(x, np.int64), axis=-1)).sum(-1)
        return math.log(0.5) + flips * math.log(1 - stay) + (dims - 1 - flips) * math.log(stay)

    rate = -float(xlogy(stay, stay) + xlogy(1 - stay, 1 - stay))
    return Synthetic(_bits("markov", dims, math.log(2) + (dims - 1) * rate), draw, log_prob)


SYNTHETIC: dict[str, Callable[..., Synthetic]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "ring": ring,
    "checkerboard": checkerboard,
    "parity": parity,
    "markov": markov,
}


def _plane(name: str, entropy: float) -> Info:
    return Info(f"synthetic:{name}", (2,), "real", entropy=entropy)


def _bits(name: str, dims: int, entropy: float) -> Info:
    return Info(f"synthetic:{name}", (dims,), "binary", 2, range=(0.0, 1.0), entropy=entropy)
