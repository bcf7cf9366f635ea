"""From the data's units to the model's: binarization, dequantization, scales, each with its log-determinant.

A transform takes one example; `apply` lifts it to a batch. With y = f(x) and density p(y) the model's,

    log p(x in data units) = log p(y) + log_det,    log_det = log |dy/dx|,

where the unit of grey levels is one level, so that after dequantization -log p(x) / (D log 2) is in bits/dim:
an upper bound on that of the discrete data (Theis et al. 2016, arXiv:1511.01844, section 3.1). Transforms
that keep the data discrete (binarization; scaling grey levels) carry probabilities over: log_det = 0.

Each acts on every dimension by itself. So where dimensions are missing, the log-determinant is that of the others: both
sides are then densities of what is observed. What is missing of an example depends on its split and index alone, in
all of a run and in every run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data.dataset import NAMES, Info
from dgm_jax.data.rows import Rows
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key

FIXED_SEED = 0  # of the one draw that "fixed" makes for each example
MISSING_SEED = 2**31 - 2  # of the one draw of what is missing of it


class Transform(NamedTuple):
    """Single-example functions."""

    name: str
    # (key, x [*shape]) -> (y [*shape], log-determinant of each dimension: [*shape], or [] where it is that of them all)
    forward: Callable[[Any, Array], tuple[Array, Array]]
    inverse: Callable[[Array], Array]  # y [*shape] -> x [*shape] in data units, for pictures
    info: Info  # what comes out
    random: bool = False  # forward needs a key
    fixed: bool = False  # the draw depends on nothing but the example's index
    variational: bool = False  # -log p(x) by log_det is a bound, and no density of x
    missing: float = 0.0  # the chance of a dimension to be hidden by `apply`
    split: str = "train"  # whose examples these are: each has draws of its own of what is missing


def make(specs: Sequence[str], info: Info, train: np.ndarray | Rows | None = None, missing: float = 0.0) -> Transform:
    """Compose a chain from strings such as ("dequantize", "logit(0.05)").

    Args:
      specs: names in TRANSFORMS, with numbers in brackets where they take such; () only makes floats.
      info: the data.
      train: the training split's x [N, *shape], from which "standardize" takes its statistics.
      missing: the share of dimensions that are hidden, each by itself, completely at random.

    Raises:
      ValueError: an unknown name, a transform that does not fit what comes into it, or a share outside [0, 1).
    """
    if not 0 <= missing < 1:
        raise ValueError(f"data.missing is the share of dimensions to hide, from 0 to below 1, not {missing}")
    chain: list[Transform] = []
    for spec in specs:
        match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", spec.replace(" ", ""))
        if match is None or match[1] not in TRANSFORMS:
            raise ValueError(f"unknown transform {spec!r}; there are: {', '.join(TRANSFORMS)}")
        try:
            numbers = [float(number) for number in match[2].split(",")] if match[2] else []
            if match[1] == "standardize":
                link = standardize(info, None if chain else train, missing, *numbers)
            else:
                link = TRANSFORMS[match[1]](info, *numbers)
        except TypeError:
            raise ValueError(f"transform {spec!r} takes fewer numbers in its brackets") from None
        chain.append(link._replace(name=spec))
        info = link.info

    def forward(key: Key | None, x: Array) -> tuple[Array, Array]:
        if info.kind != "tokens":
            x = _as_float(x)
        log_det = jnp.zeros((), jnp.result_type(float))
        for link in chain:  # at most one is random: each of those takes raw grey levels and gives none
            x, term = link.forward(key if link.random else None, x)
            log_det = log_det + term
        return x, log_det

    def inverse(y: Array) -> Array:
        for link in reversed(chain):
            y = link.inverse(y)
        return y

    return Transform(
        name=" | ".join(link.name for link in chain),
        forward=forward,
        inverse=inverse,
        info=info,
        random=any(link.random for link in chain),
        fixed=any(link.fixed for link in chain),
        variational=any(link.variational for link in chain),
        missing=missing,
    )


def of_split(transform: Transform, split: str) -> Transform:
    """The transform of the examples of "train", "valid" or "test"."""
    return transform._replace(split=split)


def whole(transform: Transform) -> Transform:
    """The transform that hides nothing, with the same draws: for what missing values are held against."""
    return transform._replace(missing=0.0)


def apply(transform: Transform, key: Key | None, batch: Batch) -> tuple[Batch, Array]:
    """Return the batch with "x" transformed, and log_det [B].

    The draw for an example has the key fold_in(key, its "index"), whatever its place in the batch, so that
    batch size, padding and sharding change nothing: with the step's key every presentation is a new draw,
    with one key for a whole evaluation every example has one. A fixed transform takes no notice of `key`.

    With missing dimensions the batch has "observed", like x, 1 = given; of the others nothing is left: x is 0 there.
    """
    if not transform.random:
        x, log_det = jax.vmap(lambda x: transform.forward(None, x))(batch["x"])
    else:
        base = jax.random.key(FIXED_SEED) if transform.fixed else key
        if base is None:
            raise ValueError(f'the transform "{transform.name}" draws, and needs a key')
        x, log_det = jax.vmap(transform.forward)(_keys(base, batch["index"]), batch["x"])
    if not transform.missing:
        alike = log_det.ndim < x.ndim
        return {**batch, "x": x}, log_det * math.prod(x.shape[1:]) if alike else sum_event(log_det)
    given = _given(transform.missing, transform.split, batch["index"], x.shape[1:])
    observed = given.astype(x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float))
    log_det = log_det * sum_event(observed) if log_det.ndim < x.ndim else sum_event(jnp.where(given, log_det, 0))
    return {**batch, "x": jnp.where(given, x, 0), "observed": observed}, log_det


def bits_per_dim(nll: Any, info: Info, mass: bool = False) -> Any:
    """Convert a negative log-likelihood in nats per example, in data units (log_det added), to bits/dim.

    Args:
      nll: any shape.
      info: what comes out of the transform, `transform.info`.
      mass: the model gives probabilities of grey levels (softmax, discretized logistic), not a density.

    Raises:
      ValueError: a density of grey levels that were not dequantized, which has no bound (a spike on a level
        makes it infinite); a density of data that never had levels; or a mass of continuous data.
    """
    if info.kind == "tokens" or (info.kind == "real" and not info.levels):
        raise ValueError(f"bits/dim are for grey levels; {info.name} has none")
    if mass and info.kind == "real":
        raise ValueError(f"{info.name} is dequantized: its likelihood is a density, not a probability")
    if not mass and info.kind != "real":
        raise ValueError(
            f"{info.name} holds {info.levels} discrete levels: a likelihood without its dequantization "
            'cannot be printed. Put "dequantize" among the transforms, or give probabilities (mass=True)'
        )
    return nll / (math.prod(info.shape) * math.log(2.0))


def threshold(info: Info) -> Transform:
    """1 where the level is in the upper half."""
    top = _raw_levels(info, "threshold")
    return _binarize(lambda key, x: (x >= (top + 1) / 2).astype(x.dtype), info, top, random=False)


def resample(info: Info) -> Transform:
    """Draw Bernoulli(x / (levels - 1)) anew at every presentation."""
    top = _raw_levels(info, "resample")
    return _binarize(lambda key, x: jax.random.bernoulli(key, x / top).astype(x.dtype), info, top, random=True)


def fixed(info: Info) -> Transform:
    """Draw Bernoulli(x / (levels - 1)) once for each example; not the published binarization of MNIST."""
    return resample(info)._replace(fixed=True)


def dequantize(info: Info) -> Transform:
    """y = (x + u) / levels in [0, 1), u uniform in [0, 1) (Uria et al. 2013, arXiv:1306.0186)."""
    levels = _raw_levels(info, "dequantize") + 1

    def forward(key: Key, x: Array) -> tuple[Array, Array]:
        u = jax.random.uniform(key, x.shape, x.dtype)
        return _within_level(x, u) / levels, jnp.asarray(-math.log(levels), x.dtype)

    return _dequantizer(forward, info, levels)


def dequantize_logistic(info: Info, scale: float = 0.5) -> Transform:
    """y = (x + sigmoid(e)) / levels, e ~ Logistic(0, scale): off the edges of the bins; scale 1 is uniform.

    Variational dequantization with a fixed q (Ho et al. 2019, arXiv:1902.00275): log_det has -log q(u | x).
    """
    if not scale > 0:
        raise ValueError(f'"dequantize_logistic" needs scale > 0, not {scale}')
    levels = _raw_levels(info, "dequantize_logistic") + 1

    def forward(key: Key, x: Array) -> tuple[Array, Array]:
        noise = jax.random.logistic(key, x.shape, x.dtype)
        e = scale * noise
        u = jax.nn.sigmoid(e)
        # log q(u) = log-density of e minus log du/de, the logarithm of sigmoid(e) sigmoid(-e)
        log_q = jax.scipy.stats.logistic.logpdf(noise) - math.log(scale) + jax.nn.softplus(e) + jax.nn.softplus(-e)
        return _within_level(x, u) / levels, -math.log(levels) - log_q

    return _dequantizer(forward, info, levels)._replace(variational=True)


def unit(info: Info) -> Transform:
    """y = x / (levels - 1): grey levels, still discrete, in [0, 1]."""
    top = _raw_levels(info, "unit")
    return Transform(
        name="unit",
        forward=lambda key, x: (x / top, jnp.zeros((), x.dtype)),
        inverse=lambda y: jnp.clip(jnp.round(y * top), 0, top),
        info=info._replace(range=(0.0, 1.0)),
    )


def symmetric(info: Info) -> Transform:
    """y = 2x - 1, from [0, 1] to [-1, 1]."""
    _in_unit_interval(info, "symmetric")
    stretch = math.log(2.0) if info.kind == "real" else 0.0
    return Transform(
        name="symmetric",
        forward=lambda key, x: (2 * x - 1, jnp.asarray(stretch, x.dtype)),
        inverse=lambda y: (y + 1) / 2,
        info=info._replace(range=(-1.0, 1.0)),
    )


def logit(info: Info, alpha: float = 0.05) -> Transform:
    """y = logit(alpha + (1 - 2 alpha) x), from [0, 1] to the line (Dinh et al. 2017, arXiv:1605.08803)."""
    _in_unit_interval(info, "logit")
    if info.kind != "real":
        raise ValueError(f'"logit" stretches densities, and {info.name} is discrete: put "dequantize" before it')
    if not 0 < alpha < 0.5:
        raise ValueError(f'"logit(alpha)" needs 0 < alpha < 0.5, not {alpha}')

    def forward(key: None, x: Array) -> tuple[Array, Array]:
        y = jax.scipy.special.logit(alpha + (1 - 2 * alpha) * x)
        # dy/dx = (1 - 2 alpha) / (p (1 - p)), p = sigmoid(y)
        log_det = math.log(1 - 2 * alpha) + jax.nn.softplus(y) + jax.nn.softplus(-y)
        return y, log_det

    return Transform(
        name="logit",
        forward=forward,
        inverse=lambda y: jnp.clip((jax.nn.sigmoid(y) - alpha) / (1 - 2 * alpha), 0, 1),
        info=info._replace(range=None),
    )


def standardize(info: Info, train: np.ndarray | Rows | None, missing: float = 0.0) -> Transform:
    """y = (x - mean) / std per dimension of the training split; a constant dimension is only shifted.

    Of Rows that are not in memory, the statistics are those of the first 10,000; where dimensions are missing, of the
    others.
    """
    if info.kind != "real" or train is None:
        raise ValueError(f'"standardize" is for real data, first in the chain, with the training split: {info.name}')
    train = train[:10_000] if isinstance(train, Rows) else train
    given = np.asarray(_given(missing, "train", jnp.arange(len(train)), train.shape[1:])) if missing else True
    count = np.maximum(np.sum(given, axis=0), 1) if missing else len(train)
    mean = np.sum(train, axis=0, dtype=np.float64, where=given) / count
    std = np.sqrt(np.sum((train - mean) ** 2, axis=0, where=given) / count)
    std = np.where(std > 0, std, 1.0)
    return Transform(
        name="standardize",
        forward=lambda key, x: (
            (x - mean.astype(x.dtype)) / std.astype(x.dtype),
            jnp.asarray(-np.log(std), x.dtype),
        ),
        inverse=lambda y: y * std.astype(y.dtype) + mean.astype(y.dtype),
        info=info._replace(range=None),
    )


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "threshold": threshold,
    "resample": resample,
    "fixed": fixed,
    "dequantize": dequantize,
    "dequantize_logistic": dequantize_logistic,
    "unit": unit,
    "symmetric": symmetric,
    "logit": logit,
    "standardize": standardize,
}


def _keys(base: Key, index: Array) -> Array:
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(index)


def _given(missing: float, split: str, index: Array, shape: tuple[int, ...]) -> Array:
    """False where a dimension is missing, [B, *shape]."""
    base = jax.random.fold_in(jax.random.key(MISSING_SEED), NAMES.index(split))
    # float32, whatever the precision of the run: what is missing never moves
    drawn = jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(_keys(base, index))
    return drawn >= missing


def _as_float(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _raw_levels(info: Info, name: str) -> int:
    """Return the highest level, levels - 1, of data whose grey levels are as they were stored."""
    if info.kind != "levels" or info.range != (0.0, info.levels - 1.0):
        raise ValueError(f'"{name}" needs grey levels 0..levels-1; {info.name} is {info.kind} in {info.range} here')
    return info.levels - 1


def _in_unit_interval(info: Info, name: str) -> None:
    if info.range != (0.0, 1.0):
        raise ValueError(f'"{name}" needs values in [0, 1]; {info.name} is {info.kind} in {info.range} here')


def _binarize(draw: Callable[[Any, Array], Array], info: Info, top: int, random: bool) -> Transform:
    return Transform(
        name="",
        forward=lambda key, x: (draw(key, x), jnp.zeros((), x.dtype)),
        inverse=lambda y: y * top,
        info=info._replace(kind="binary", levels=2, range=(0.0, 1.0), entropy=None),
        random=random,
    )


def _within_level(x: Array, u: Array) -> Array:
    """x + u, which rounding must not lift to the next level."""
    return jnp.minimum(x + u, (x + 1) * (1 - jnp.finfo(x.dtype).eps))


def _dequantizer(forward: Callable[[Key, Array], tuple[Array, Array]], info: Info, levels: int) -> Transform:
    return Transform(
        name="",
        forward=forward,
        inverse=lambda y: jnp.clip(jnp.floor(y * levels), 0, levels - 1),
        info=info._replace(kind="real", range=(0.0, 1.0), entropy=None),
        random=True,
    )
