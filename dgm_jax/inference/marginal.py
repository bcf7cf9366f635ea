"""log p(x) of a model with real latents, by annealed importance sampling with Hamiltonian transitions.

    log f_b(z) = (1 - b) log f_0(z) + b log p(x, z),    0 = b_0 < ... < b_T = 1

f_0 is normalised, so that `ais.log_partition` estimates Z_1 = p(x): without bias, and log p(x) from below on average.
With T = 1 that is the importance-weighted bound; it tightens with T, however bad f_0 is. Two starts:

    posterior   f_0 = q(z | x). Near the end already: the fewest temperatures
    prior       f_0 = p(z). Asks nothing of an encoder, so that decoders alone can be compared

The same from the other end: a chain that starts at an exact draw of p(z | x) and is cooled to f_0 estimates 1 / p(x),
and so log p(x) from above. Of (z, x) drawn from the model z is such a draw: on simulated data both ends are known to
hold log p(x) between them (BDMC), and their gap bounds the error.

Step sizes: chains that adapt their own step sizes leave no f_b invariant, which biases the estimate. Here a pilot of
other chains, with keys of its own, anneals first and adapts; what it chose is then fixed, whatever the chains do.

References: Neal 2001, Annealed importance sampling; Wu et al. 2017, On the quantitative analysis of decoder-based
generative models, arXiv 1611.04273; bidirectional: Grosse, Ghahramani & Adams 2015, arXiv 1511.02543; Grosse, Ancha
& Roy 2016, arXiv 1606.02275.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dgm_jax.inference import ais, mcmc
from dgm_jax.types import Array, Batch, Key, Params, PyTree

PILOTS = 4  # chains that choose the step sizes
PILOT_DRAWS = 64  # of f_0, whose variances are the inverse masses
ACCEPTANCE = 0.65  # that step sizes aim at
GAIN = 0.5  # change of a log step size for each unit of acceptance, from temperature to temperature


class Annealing(NamedTuple):
    """How much is computed for one example."""

    temperatures: int = 100  # T
    chains: int = 20  # whose weights are averaged
    leapfrog: int = 10  # steps of a Hamiltonian trajectory, one a temperature
    chunk: int | None = None  # chains at once; None for all. It changes nothing else


class Path(NamedTuple):
    """The two ends of the path of one example. Latents are without a batch dimension."""

    sample: Callable[[Key], PyTree]  # an exact draw of f_0
    log_initial: Callable[[PyTree], Array]  # log f_0 [], normalised
    log_joint: Callable[[PyTree], Array]  # log p(x, z) []

    def log_density(self, beta: Array, z: PyTree) -> Array:
        """log f_beta [], up to a constant."""
        return (1 - beta) * self.log_initial(z) + beta * self.log_joint(z)


PathOf = Callable[[Params, Batch], Path]  # params and one example, without a batch dimension


def from_posterior(draw: Callable, log_posterior: Callable, log_joint: Callable) -> PathOf:
    """Paths that start at q(z | x); the arguments are capabilities of a Model."""

    def path(params: Params, example: Batch) -> Path:
        batch = _alone(example)
        return Path(
            lambda key: _only(_real(draw(params, key, batch)[0])),
            lambda z: log_posterior(params, _alone(z), batch)[0],
            lambda z: log_joint(params, _alone(z), batch)[0],
        )

    return path


def from_prior(prior: Callable, log_prior: Callable, log_joint: Callable) -> PathOf:
    """Paths that start at p(z); the arguments are capabilities of a Model."""

    def path(params: Params, example: Batch) -> Path:
        batch = _alone(example)
        return Path(
            lambda key: _only(_real(prior(params, key, 1, batch.get("cond")))),
            lambda z: log_prior(params, _alone(z), batch)[0],
            lambda z: log_joint(params, _alone(z), batch)[0],
        )

    return path


def inverse_temperatures(count: int, sharpness: float = 4.0) -> Array:
    """b_0 = 0, ..., b_T = 1 along a sigmoid, close to each other near both ends: [T + 1].

    The schedule of Grosse, Ghahramani & Adams, section 5.1.
    """
    values = jax.nn.sigmoid(sharpness * jnp.linspace(-1, 1, count + 1))
    return (values - values[0]) / (values[-1] - values[0])


class Tuning(NamedTuple):
    """What the pilot chose."""

    betas: Array  # [T + 1]
    step_sizes: Array  # [T + 1], of the transitions at each of them
    variance: Array  # [D], of the entries of z under f_0: the inverse masses


def tune(key: Key, path: Path, temperatures: int, leapfrog: int) -> Tuning:
    """Anneal a few chains, their step size adapted from temperature to temperature."""
    betas = inverse_temperatures(temperatures)
    draw_key, run_key = jax.random.split(key)
    starts = jax.vmap(path.sample)(jax.random.split(draw_key, PILOT_DRAWS))
    flat = jax.vmap(lambda z: ravel_pytree(z)[0])(starts)
    variance = flat.var(0)

    def step(carry: tuple[PyTree, Array], at: tuple[Array, Array]) -> tuple[tuple[PyTree, Array], Array]:
        z, log_size = carry
        t, beta = at
        kernel = mcmc.hmc(lambda z: path.log_density(beta, z), jnp.exp(log_size), variance, leapfrog)
        z, acceptance = jax.vmap(kernel)(jax.random.split(jax.random.fold_in(run_key, t), PILOTS), z)
        return (z, log_size + GAIN * (acceptance.mean() - ACCEPTANCE)), log_size

    # near the best of a normal density that has these variances (Neal 2011, section 5.4.4)
    first = jnp.asarray(-0.25 * jnp.log(variance.size), variance.dtype)
    chains = jax.tree.map(lambda leaf: leaf[:PILOTS], starts)
    _, log_sizes = jax.lax.scan(step, (chains, first), (jnp.arange(temperatures), betas[1:]))
    return Tuning(betas, jnp.exp(jnp.concatenate([first[None], log_sizes])), variance)


def log_marginal(key: Key, path: Path, annealing: Annealing) -> ais.LogPartition:
    """Estimate log p(x) of one example; on average it is a lower bound."""
    tune_key, run_key = jax.random.split(key)
    tuning = tune(tune_key, path, annealing.temperatures, annealing.leapfrog)
    return _anneal(run_key, path, tuning, tuning.betas, path.sample, annealing)


class Sandwich(NamedTuple):
    """Estimates of log p(x), in nats, of examples that were drawn from the model."""

    x: Array  # [n, *event]
    lower: Array  # [n], at most log p(x) on average
    upper: Array  # [n], at least


def bdmc(
    path_of: PathOf, dream: Callable, params: Params, key: Key, n: int, annealing: Annealing, cond: PyTree = None
) -> Sandwich:
    """Bidirectional Monte Carlo on examples that the model itself makes.

    The mean of upper - lower is at least the expected error of `log_marginal` on such examples.

    Args:
        path_of: where chains start.
        dream: capability of a Model: exact draws of (z, x).
        params: of the Model.
        key: example i has the key fold_in(., i).
        n: examples.
        annealing: of the chains of each direction. Those from above all start at the example's own z.
        cond: of the examples, a leading [n]; None where there is none.
    """
    dream_key, run_key = jax.random.split(key)
    z, x = dream(params, dream_key, n, cond)
    batch = {"x": x} if cond is None else {"x": x, "cond": cond}

    def both(i: Array, z: PyTree, example: Batch) -> Sandwich:
        path = path_of(params, example)
        tune_key, up_key, down_key = jax.random.split(jax.random.fold_in(run_key, i), 3)
        tuning = tune(tune_key, path, annealing.temperatures, annealing.leapfrog)
        up = _anneal(up_key, path, tuning, tuning.betas, path.sample, annealing)
        down = _anneal(down_key, path, tuning, tuning.betas[::-1], lambda key: z, annealing)
        return Sandwich(example["x"], up.log_z, -down.log_z)

    return jax.vmap(both)(jnp.arange(n), z, batch)


def _anneal(
    key: Key, path: Path, tuning: Tuning, betas: Array, start: Callable[[Key], PyTree], annealing: Annealing
) -> ais.LogPartition:
    def transition(key: Key, beta: Array, z: PyTree) -> PyTree:
        size = jnp.interp(beta, tuning.betas, tuning.step_sizes)
        return mcmc.hmc(lambda z: path.log_density(beta, z), size, tuning.variance, annealing.leapfrog)(key, z)[0]

    chains, chunk = annealing.chains, annealing.chunk
    return ais.log_partition(key, betas, start, path.log_density, transition, 0.0, chains, chunk)


def _alone(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _only(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _real(z: PyTree) -> PyTree:
    kinds = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(z)})
    if not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ValueError(f"Hamiltonian transitions move real latents along gradients; these are {', '.join(kinds)}")
    return z
