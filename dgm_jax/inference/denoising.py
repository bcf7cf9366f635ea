"""Gaussian diffusion: noise schedules, what a denoiser can predict, the reverse chain and its bound.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2),   alpha_t^2 + sigma_t^2 = 1,   t in [0, 1]
    q(x_t | x_s) = N(alpha_t|s x_s, sigma_t|s^2),   alpha_t|s = alpha_t / alpha_s,   s < t

A chain of T steps has the times 0, 1/T, ..., 1. All functions take a `denoise(x_t [B, *event], t [B])`, the
estimate of E[x_0 | x_t], whatever the network behind it predicts.

References: Ho et al. 2020, arXiv 2006.11239; Nichol & Dhariwal 2021, arXiv 2102.09672 (cosine); Song et al.
2021, arXiv 2010.02502 (DDIM); Salimans & Ho 2022, arXiv 2202.00512 (velocity); Kingma et al. 2021,
arXiv 2107.00630 (the notation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.distributions import standard_normal_log_prob
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Key

Denoise = Callable[[Array, Array], Array]

PREDICTIONS = ("x0", "noise", "velocity", "score")
SCHEDULES = ("linear", "cosine")


class Schedule(NamedTuple):
    """A variance-preserving schedule; the methods are elementwise in t in [0, 1]."""

    log_alpha: Callable[[Array], Array]  # falls from 0; a logarithm, because 1 - alpha^2 cancels
    steps: int  # T

    def alpha(self, t: Array) -> Array:
        """Share of the data in x_t."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        """Standard deviation of the noise in x_t."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))

    def log_snr(self, t: Array) -> Array:
        """log(alpha^2 / sigma^2), infinite at t = 0."""
        return 2 * self.log_alpha(t) - jnp.log(-jnp.expm1(2 * self.log_alpha(t)))

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        """alpha_t|s and sigma_t|s^2 of q(x_t | x_s), for s <= t."""
        log_ratio = self.log_alpha(t) - self.log_alpha(s)
        return jnp.exp(log_ratio), -jnp.expm1(2 * log_ratio)


def schedule(name: str = "cosine", steps: int = 1000) -> Schedule:
    """The discrete products of a published schedule, with log alpha linear between the steps.

    Args:
        name: "linear" (Ho et al.: beta from 1e-4 to 0.02 over 1000 steps, scaled by 1000 / steps) or "cosine"
            (Nichol & Dhariwal, eq. 17).
        steps: T, the length of the chain.

    Raises:
        ValueError: an unknown name.
    """
    if name == "linear":
        beta = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    elif name == "cosine":
        bar = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = 1 - bar[1:] / bar[:-1]
    else:
        raise ValueError(f"unknown schedule {name!r}; one of {', '.join(SCHEDULES)}")
    table = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.minimum(beta, 0.999)))])

    def log_alpha(t: Array) -> Array:
        values = jnp.asarray(table, t.dtype)
        i = jnp.clip((t * steps).astype(jnp.int32), 0, steps - 1)
        return values[i] + (t * steps - i) * (values[i + 1] - values[i])

    return Schedule(log_alpha, steps)


def over_event(values: Array, x: Array) -> Array:
    """[B] -> [B, 1, ...], to be broadcast over x [B, *event]."""
    return jnp.expand_dims(values, range(1, x.ndim))


def diffuse(schedule: Schedule, x_0: Array, t: Array, noise: Array) -> Array:
    """x_t = alpha_t x_0 + sigma_t noise, for x_0 and noise [B, *event] and t [B]."""
    return over_event(schedule.alpha(t), x_0) * x_0 + over_event(schedule.sigma(t), x_0) * noise


def convert(schedule: Schedule, value: Array, x_t: Array, t: Array, source: str, target: str) -> Array:
    """From one of PREDICTIONS to another, [B, *event]; they are linear in each other given x_t.

    noise = (x_t - alpha x_0) / sigma,  velocity = alpha noise - sigma x_0,  score = -noise / sigma, the
    gradient of log q(x_t).

    Args:
        schedule: alpha and sigma.
        value: the `source`, [B, *event].
        x_t: [B, *event].
        t: [B] in (0, 1].
        source, target: names in PREDICTIONS.

    Raises:
        ValueError: an unknown name.
    """
    for name in (source, target):
        if name not in PREDICTIONS:
            raise ValueError(f"unknown prediction {name!r}; one of {', '.join(PREDICTIONS)}")
    if source == target:
        return value
    alpha, sigma = over_event(schedule.alpha(t), x_t), over_event(schedule.sigma(t), x_t)
    if source == "x0":
        x_0 = value
    elif source == "noise":
        x_0 = (x_t - sigma * value) / alpha
    elif source == "velocity":
        x_0 = alpha * x_t - sigma * value
    else:
        x_0 = (x_t + sigma**2 * value) / alpha
    if target == "x0":
        return x_0
    if target == "noise":
        return (x_t - alpha * x_0) / sigma
    if target == "velocity":
        return (alpha * x_t - x_0) / sigma
    return (alpha * x_0 - x_t) / sigma**2


def posterior(schedule: Schedule, x_0: Array, x_t: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """Mean [B, *event] and variance [B] of q(x_s | x_t, x_0), for s < t (Ho et al., eqs. 6 and 7)."""
    alpha, variance = schedule.transition(s, t)
    share = (schedule.sigma(s) / schedule.sigma(t)) ** 2
    weight = schedule.alpha(s) * variance / schedule.sigma(t) ** 2
    mean = over_event(alpha * share, x_t) * x_t + over_event(weight, x_t) * x_0
    return mean, share * variance


def sample(
    schedule: Schedule,
    denoise: Denoise,
    key: Key,
    x_1: Array,
    steps: int,
    *,
    eta: float = 1.0,
    temperature: float = 1.0,
) -> Array:
    """Run the reverse chain from x_1 ~ q(x_1), about N(0, I), to x_0, [B, *event] both.

    A step draws x_s ~ N(alpha_s x_0 + sqrt(sigma_s^2 - d^2) noise, d^2) with the estimates of x_0 and the
    noise, and d = eta times the standard deviation of q(x_s | x_t, x_0) (Song et al., eq. 12): eta=1 is
    ancestral sampling, eta=0 the deterministic DDIM.

    Args:
        schedule: of the denoiser.
        denoise: (x_t [B, *event], t [B]) -> x_0.
        key: of the draws; step k has the key fold_in(key, k).
        x_1: where to start.
        steps: evaluations of `denoise`; need not be schedule.steps.
        eta: in [0, 1].
        temperature: scales the noise that is added.
    """
    return _run(schedule, denoise, key, x_1, steps, eta, temperature)[0]


def estimates(
    schedule: Schedule,
    denoise: Denoise,
    key: Key,
    x_1: Array,
    steps: int,
    *,
    eta: float = 1.0,
    temperature: float = 1.0,
) -> Array:
    """The estimates of x_0 on the way of the chain that `sample` runs, [steps, B, *event]; the last is its x_0."""
    return _run(schedule, denoise, key, x_1, steps, eta, temperature)[1]


def _run(
    schedule: Schedule, denoise: Denoise, key: Key, x_1: Array, steps: int, eta: float, temperature: float
) -> tuple[Array, Array]:
    """x_0, and its estimates at all steps."""

    def step(x: Array, k: Array) -> tuple[Array, Array]:
        # of integers, so that the last s is 0 and not just below, where sigma is not real
        t = jnp.full(x.shape[:1], (steps - k) / steps, x.dtype)
        s = jnp.full(x.shape[:1], (steps - k - 1) / steps, x.dtype)
        x_0 = denoise(x, t)
        noise = convert(schedule, x_0, x, t, "x0", "noise")
        alpha, variance = schedule.transition(s, t)
        share = (schedule.sigma(s) / schedule.sigma(t)) ** 2
        deviation = eta * jnp.sqrt(share * variance)
        # sqrt(sigma_s^2 - deviation^2) without its cancellation
        rest = schedule.sigma(s) * jnp.sqrt(1 - eta**2 + eta**2 * alpha**2 * share)
        x = over_event(schedule.alpha(s), x) * x_0 + over_event(rest, x) * noise
        if eta > 0:
            draw = temperature * jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)
            x = x + over_event(deviation, x) * draw
        return x, x_0

    return jax.lax.scan(step, x_1, jnp.arange(steps))


def draw_chain(schedule: Schedule, key: Key, x_0: Array) -> tuple[Array, Array]:
    """One draw of x_1/T, ..., x_1 ~ q given x_0 [B, *event], as the noise of every step.

    Noises and chain are one-to-one given x_0, by x_t = alpha_t|s x_s + sigma_t|s noise_t, and give the same
    bound; the chain's densities, of order 1 / sigma_t|s, would lose it to rounding. Step k has the key
    fold_in(key, k).

    Returns:
        (noises [B, T, *event], log q(noises) [B] as `chain_log_density` gives it).
    """

    def draw(k: Array) -> tuple[Array, Array]:
        noise = jax.random.normal(jax.random.fold_in(key, k), x_0.shape, x_0.dtype)
        return noise, _centred_log_density(noise)

    noises, log_q = jax.lax.map(draw, jnp.arange(schedule.steps))  # one step at a time: all at once take much memory
    return jnp.moveaxis(noises, 0, 1), log_q.sum(0)


def chain_log_density(noises: Array) -> Array:
    """log q(noises) [B] of noises [B, T, *event], but for a constant, which is left out of `chain_log_joint` too.

    That of each number is its mean: T times as many as x_0 has add up to millions of nats, in which float32 would lose
    the bound, and without their means to a thousand.
    """
    return jax.lax.map(_centred_log_density, jnp.moveaxis(noises, 1, 0)).sum(0)


def _centred_log_density(x: Array) -> Array:
    """The log-density [B] of standard normal numbers [B, ...], less its mean."""
    return sum_event(0.5 * (1 - x**2))


def chain_log_joint(schedule: Schedule, denoise: Denoise, noises: Array, x_0: Array) -> Array:
    """log p(x_0, noises) [B] of the reverse chain; minus log q of `draw_chain`, a bound on log p(x_0).

    The constant that log q is without is left out here as well.

    p(x_s | x_t) is normal with the mean of q(x_s | x_t, x_0 = denoise(x_t)) and the variance sigma_t|s^2, which
    is that of the reverse of short steps if the data have a smooth density: with an exact denoiser the bound then
    closes as T grows. (With the variance of q(x_s | x_t, x_0), right for a single point, it does not.)

    Args:
        schedule: of the denoiser; T = schedule.steps.
        denoise: (x_t [B, *event], t [B]) -> x_0.
        noises: [B, T, *event].
        x_0: [B, *event].
    """

    def step(x_s: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        k, noise = inputs
        s = jnp.full(x_s.shape[:1], k / schedule.steps, x_s.dtype)
        t = jnp.full(x_s.shape[:1], (k + 1) / schedule.steps, x_s.dtype)
        alpha, variance = schedule.transition(s, t)
        scale = over_event(jnp.sqrt(variance), x_s)
        x_t = over_event(alpha, x_s) * x_s + scale * noise
        mean, _ = posterior(schedule, denoise(x_t, t), x_t, s, t)
        # 1/scale of this density and the scale of dx_t/dnoise cancel
        return x_t, _centred_log_density((x_s - mean) / scale)

    x_1, terms = jax.lax.scan(step, x_0, (jnp.arange(schedule.steps), jnp.moveaxis(noises, 1, 0)))
    constant = x_0[0].size * standard_normal_log_prob(jnp.ones((), x_0.dtype))  # that of x_1, the mean of a density
    return _centred_log_density(x_1) + terms.sum(0) + constant
