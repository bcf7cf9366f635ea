"""Distributions of one value given a vector that a net puts out: what a likelihood ends in.

`make("bernoulli")`, `make("gaussian", components=10)`, `make("categorical", levels=256)`, ... Grey levels are the
whole numbers 0..levels-1, as the data have them.

`coupled_logistic` is of a whole pixel: it gives what `logistic` is given for each channel, once the earlier ones are
known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.distributions import (
    bernoulli_fit,
    bernoulli_log_prob,
    bernoulli_sample,
    categorical_log_prob,
    discretized_logistic_log_prob,
    laplace_log_prob,
    normal_log_prob,
)
from dgm_jax.models.options import at_least
from dgm_jax.numerics import masked_mean, softplus_inverse
from dgm_jax.types import Array, Key

MIN_SCALE = 1e-3  # of a density: that of a constant dimension has no upper bound


class Output(NamedTuple):
    """p(x | raw), elementwise: raw has one more axis than x, of `size` numbers."""

    size: int
    log_prob: Callable[[Array, Array], Array]  # (x [...], raw [..., size]) -> [...]
    sample: Callable[[Key, Array, float], Array]  # (key, raw [..., size], temperature) -> [...]
    mean: Callable[[Array], Array]  # raw [..., size] -> E[x | raw], [...]
    # (x [B, ...], mask [B] or like x) -> raw [..., size] of the marginals of what the mask keeps
    fit: Callable[[Array, Array | None], Array]
    read: Callable[[Array], Array]  # x as a net reads it: of the order of 1
    support: str  # Model.support


def bernoulli() -> Output:
    """Values 0 and 1; raw is the logit."""
    return Output(
        1,
        lambda x, raw: bernoulli_log_prob(x, raw[..., 0]),
        lambda key, raw, temperature: bernoulli_sample(key, raw[..., 0], temperature),
        lambda raw: jax.nn.sigmoid(raw[..., 0]),
        lambda x, mask: bernoulli_fit(x, mask)[..., None],
        lambda x: x,
        "binary",
    )


def categorical(levels: int) -> Output:
    """A softmax over grey levels."""

    def fit(x: Array, mask: Array | None) -> Array:
        keep = jnp.ones(x.shape[0], bool) if mask is None else mask != 0
        weight = jnp.broadcast_to(jnp.expand_dims(keep, range(keep.ndim, x.ndim)), x.shape).astype(x.dtype)
        flat = x.reshape(x.shape[0], -1)
        columns = jnp.arange(flat.shape[1])[None]
        counts = jnp.zeros((flat.shape[1], levels), x.dtype)
        counts = counts.at[columns, flat.astype(int)].add(weight.reshape(flat.shape))
        return jnp.log(counts + 1.0 / levels).reshape(*x.shape[1:], levels)

    return Output(
        levels,
        lambda x, raw: categorical_log_prob(x.astype(int), raw),
        lambda key, raw, temperature: jax.random.categorical(key, raw / temperature).astype(raw.dtype),
        lambda raw: jax.nn.softmax(raw) @ jnp.arange(levels, dtype=raw.dtype),
        fit,
        lambda x: _unit(x, levels),
        "levels",
    )


def gaussian(components: int) -> Output:
    """A mixture of normal densities; raw holds logits (not of one), means, and scales before softplus."""
    return _density_mixture(components, normal_log_prob, jax.random.normal)


def laplace(components: int) -> Output:
    """A mixture of Laplace densities; raw as for `gaussian`."""
    return _density_mixture(components, laplace_log_prob, jax.random.laplace)


def logistic(components: int, levels: int) -> Output:
    """A mixture of logistic variables, discretized to grey levels (Salimans et al. 2017, PixelCNN++, eq. 1-2)."""
    width = 2.0 / (levels - 1)

    def log_prob(x: Array, raw: Array) -> Array:
        logits, loc, log_scale = _parts(raw, components)
        each = _level_log_probs(_unit(x, levels), loc, log_scale, levels)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + each, axis=-1)

    def sample(key: Key, raw: Array, temperature: float) -> Array:
        loc, log_scale, noise = _component(key, raw, components, temperature, jax.random.logistic)
        return level_of(loc + jnp.exp(jnp.clip(log_scale, *LOG_SCALES)) * noise, levels)

    def mean(raw: Array) -> Array:
        """sum_k P(x >= k), one level after the other: all at once take much memory."""
        logits, loc, log_scale = _parts(raw, components)
        weights, sharpness = jax.nn.softmax(logits), jnp.exp(-jnp.clip(log_scale, *LOG_SCALES))

        def add(k: Array, total: Array) -> Array:
            return total + (weights * jax.nn.sigmoid((loc - ((k - 0.5) * width - 1)) * sharpness)).sum(-1)

        return jax.lax.fori_loop(1, levels, add, jnp.zeros_like(loc[..., 0]))

    def fit(x: Array, mask: Array | None) -> Array:
        loc, scale = _spread(_unit(x, levels), mask, components)
        return _raw(jnp.zeros_like(loc), loc, jnp.log(scale + width))

    return Output(_size(components), log_prob, sample, mean, fit, lambda x: _unit(x, levels), "levels")


class Coupled(NamedTuple):
    """What the `Output` of each channel of a pixel is given, from one vector for all of them."""

    size: int  # of that vector, raw
    # (raw [..., size], x [..., C] as a net reads it) -> [..., C, Output.size]: of channel c, given those before it
    channels: Callable[[Array, Array], Array]
    fit: Callable[[Array], Array]  # Output.fit of the channels, [C, Output.size] -> raw [size], without coupling


def coupled_logistic(channels: int, components: int, levels: int) -> Coupled:
    """A mixture of logistics for all channels of a pixel (Salimans et al. 2017, PixelCNN++, eq. 3).

    Within component k channel c is logistic around loc_ck + sum_{d<c} tanh(a_cdk) x_d, discretized. So, given the
    earlier channels, it is a mixture as `logistic` has it, of weights that these channels have changed:

        p(x_c | x_<c) = sum_k w_ck p_k(x_c | x_<c),   w_ck in proportion to pi_k prod_{d<c} p_k(x_d | x_<d).
    """
    pairs = channels * (channels - 1) // 2
    parts = [1, channels, channels, pairs]  # logits, locations, log-scales, and coefficients in the order of (c, d)
    ends = [components * sum(parts[: i + 1]) for i in range(3)]

    def of_channels(raw: Array, x: Array) -> Array:
        logits, *tables = jnp.split(raw, ends, axis=-1)
        loc, log_scale, strength = (table.reshape(*table.shape[:-1], -1, components) for table in tables)
        found, pair = [], 0
        for c in range(channels):
            at = loc[..., c, :]
            for d in range(c):
                at = at + jnp.tanh(strength[..., pair, :]) * x[..., d, None]
                pair += 1
            found.append(_raw(logits, at, log_scale[..., c, :]))
            logits = logits + _level_log_probs(x[..., c], at, log_scale[..., c, :], levels)
        return jnp.stack(found, axis=-2)

    def fit(of_channels: Array) -> Array:
        _, loc, log_scale = _parts(of_channels, components)
        apart = [jnp.zeros(components), loc.reshape(-1), log_scale.reshape(-1), jnp.zeros(pairs * components)]
        return jnp.concatenate(apart).astype(loc.dtype)

    return Coupled(components * sum(parts), of_channels, fit)


LOG_SCALES = (-7.0, 20.0)  # of a discretized logistic: from a small part of a level to no difference between levels
OUTPUTS: dict[str, tuple[Callable[..., Output], tuple[str, ...]]] = {
    "bernoulli": (bernoulli, ()),
    "categorical": (categorical, ("levels",)),
    "logistic": (logistic, ("components", "levels")),
    "gaussian": (gaussian, ("components",)),
    "laplace": (laplace, ("components",)),
}
SCALED = ("gaussian", "laplace", "logistic")  # the last `components` numbers of raw are scales


def make(name: str, *, components: int = 10, levels: int = 256) -> Output:
    """An output by its name, with what it takes of the rest; ValueError lists the names, or says what is too few."""
    if name not in OUTPUTS:
        raise ValueError(f"unknown output {name!r}; there are {', '.join(OUTPUTS)}")
    function, takes = OUTPUTS[name]
    at_least(1, components=components)
    at_least(2, levels=levels)
    given = {"components": components, "levels": levels}
    return function(**{option: given[option] for option in takes})


def shared_scales(name: str, components: int, shared: bool) -> int:
    """How many of raw's numbers, its last, are the same everywhere: the scales of an output, or none.

    Raises:
        ValueError: they are to be shared, and the output has none.
    """
    if shared and name not in SCALED:
        raise ValueError(f"output {name!r} has no scale to share; one of {', '.join(SCALED)} has")
    return components if shared else 0


def level_of(x: Array, levels: int) -> Array:
    """The grey level nearest to x in [-1, 1]; beyond the ends, the ends."""
    return jnp.clip(jnp.round((x + 1) * (0.5 * (levels - 1))), 0, levels - 1)


def _unit(x: Array, levels: int) -> Array:
    return x * (2.0 / (levels - 1)) - 1


def _level_log_probs(x: Array, loc: Array, log_scale: Array, levels: int) -> Array:
    """Log-masses [..., K] of the level that is read as x [...], under each of K logistics."""
    at, log_scale = jnp.broadcast_to(x[..., None], loc.shape), jnp.clip(log_scale, *LOG_SCALES)
    return discretized_logistic_log_prob(at, loc, log_scale, 2.0 / (levels - 1), -1.0, 1.0)


def _density_mixture(components: int, density: Callable[..., Array], noise: Callable[..., Array]) -> Output:
    def log_prob(x: Array, raw: Array) -> Array:
        logits, loc, width = _parts(raw, components)
        if components == 1:  # no axis of length one: it is slow on the CPU
            return density(x, loc[..., 0], MIN_SCALE + jax.nn.softplus(width[..., 0]))
        each = density(x[..., None], loc, MIN_SCALE + jax.nn.softplus(width))
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + each, axis=-1)

    def sample(key: Key, raw: Array, temperature: float) -> Array:
        loc, width, drawn = _component(key, raw, components, temperature, noise)
        return loc + (MIN_SCALE + jax.nn.softplus(width)) * drawn

    def mean(raw: Array) -> Array:
        logits, loc, _ = _parts(raw, components)
        return (jax.nn.softmax(logits) * loc).sum(-1)

    def fit(x: Array, mask: Array | None) -> Array:
        loc, scale = _spread(x, mask, components)
        return _raw(jnp.zeros_like(loc), loc, softplus_inverse(scale + MIN_SCALE))

    return Output(_size(components), log_prob, sample, mean, fit, lambda x: x, "real")


def _size(components: int) -> int:
    """Numbers of a mixture: logits, locations and scales; a single component has no logit."""
    return 3 * components if components > 1 else 2


def _parts(raw: Array, components: int) -> tuple[Array, Array, Array]:
    """Logits, locations and scales [..., K] of raw [..., _size(K)]."""
    if components > 1:
        logits, loc, scale = jnp.split(raw, 3, axis=-1)
    else:
        loc, scale = jnp.split(raw, 2, axis=-1)
        logits = jnp.zeros_like(loc)
    return logits, loc, scale


def _raw(logits: Array, loc: Array, scale: Array) -> Array:
    """What `_parts` takes apart."""
    return jnp.concatenate([logits, loc, scale] if loc.shape[-1] > 1 else [loc, scale], axis=-1)


def _component(
    key: Key, raw: Array, components: int, temperature: float, noise: Callable[..., Array]
) -> tuple[Array, Array, Array]:
    """One component's location and second parameter [...], and noise of its kind, `temperature` times as wide."""
    choice_key, noise_key = jax.random.split(key)
    logits, loc, second = _parts(raw, components)
    chosen = jax.random.categorical(choice_key, logits / temperature)[..., None]
    loc, second = (jnp.take_along_axis(table, chosen, axis=-1)[..., 0] for table in (loc, second))
    return loc, second, temperature * noise(noise_key, loc.shape, loc.dtype)


def _spread(x: Array, mask: Array | None, components: int) -> tuple[Array, Array]:
    """Locations [..., components] over the range of x [B, ...] by its mean and deviation, and their width."""
    mean = masked_mean(x, mask)
    deviation = jnp.sqrt(masked_mean((x - mean[None]) ** 2, mask))[..., None]
    places = jax.scipy.stats.norm.ppf((jnp.arange(components) + 0.5) / components).astype(x.dtype)
    places = jnp.broadcast_to(places, (*mean.shape, components))
    return mean[..., None] + deviation * places, jnp.broadcast_to(deviation, places.shape)
