"""Kernels leave an enumerated distribution invariant; annealed importance sampling finds its normalizer."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from dgm_jax.inference import ais, mcmc
from dgm_jax.numerics import mean_and_stderr

CHAINS = 20_000


def fits(states, probabilities):
    """p-value of the chi-square test of state indices against their exact distribution."""
    counts = np.bincount(np.asarray(states), minlength=len(probabilities))
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    return stats.chisquare(counts[possible], probabilities[possible] * counts.sum()).pvalue


# --- Metropolis-Hastings on seven states ---

LOG_P = jnp.array([0.0, 1.0, -0.5, 2.0, -jnp.inf, 0.3, -1.0])
PROBABILITIES = special.softmax(np.asarray(LOG_P, np.float64))
UP = 0.8  # the walk on the ring goes up far more often than down


def walk(key, x, corrected=True):
    up = jax.random.bernoulli(key, UP)
    correction = jnp.where(up, 1, -1) * jnp.log((1 - UP) / UP)
    return (x + jnp.where(up, 1, -1)) % 7, correction * corrected


def jump(key, x):
    return jax.random.randint(key, (), 0, 7), 0.0


def metropolis_chains(propose, x, steps):
    kernel = mcmc.metropolis_hastings(lambda x: LOG_P[x], propose)
    start = jax.vmap(lambda x: mcmc.metropolis_init(lambda x: LOG_P[x], x))(x)
    keys = jax.random.split(jax.random.key(0), len(x))
    return jax.jit(jax.vmap(lambda key, state: mcmc.run(kernel, key, state, steps)))(keys, start)


@pytest.mark.parametrize("propose", [walk, jump])
def test_metropolis_hastings_leaves_its_target_invariant(propose):
    x = jax.random.categorical(jax.random.key(1), LOG_P, shape=(CHAINS,))
    end = metropolis_chains(propose, x, 3)
    assert fits(end.x, PROBABILITIES) > 1e-3
    assert (end.x != x).mean() > 0.2  # they did move
    np.testing.assert_array_equal(end.log_prob, LOG_P[end.x])


@pytest.mark.slow
def test_metropolis_hastings_reaches_its_target():
    end = metropolis_chains(jump, jnp.full(CHAINS, 4), 100)  # from a state without probability
    assert fits(end.x, PROBABILITIES) > 1e-3


def test_chi_square_notices_a_missing_correction():
    x = jax.random.categorical(jax.random.key(1), LOG_P, shape=(CHAINS,))
    assert fits(metropolis_chains(partial(walk, corrected=False), x, 3).x, PROBABILITIES) < 1e-6


def test_metropolis_counts_what_it_accepts():
    def chain(log_prob, steps=50):
        kernel = mcmc.metropolis_hastings(log_prob, lambda key, x: ({"x": x["x"] + 1}, 0.0))
        return mcmc.run(kernel, jax.random.key(2), mcmc.metropolis_init(log_prob, {"x": jnp.array(0.0)}), steps)

    for log_prob, accepted in (
        (lambda x: x["x"], 50),
        (lambda x: -1e4 * x["x"], 0),
        (lambda x: jnp.where(x["x"] > 3, jnp.nan, x["x"]), 3),
        (lambda x: jnp.where(x["x"] > 3, -jnp.inf, x["x"]), 3),
    ):
        end = chain(log_prob)
        assert end.accepted == end.x["x"] == accepted
        assert np.isfinite(end.log_prob)


# --- the driver, with Gibbs sampling of four spins on a ring ---

COUPLING, FIELD = 0.6, jnp.array([0.3, -0.2, 0.5, 0.0])
SPINS = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))
ISING = special.softmax(np.asarray(COUPLING * (SPINS * jnp.roll(SPINS, 1, axis=1)).sum(1) + SPINS @ FIELD, np.float64))


def ising_sweep(key, x):
    """One Gibbs update of every spin in turn."""

    def update(x, site):
        logit = 2 * (COUPLING * (x[(site + 1) % 4] + x[(site - 1) % 4]) + FIELD[site])
        up = jax.random.bernoulli(jax.random.fold_in(key, site), jax.nn.sigmoid(logit))
        return x.at[site].set(jnp.where(up, 1.0, -1.0)), None

    return jax.lax.scan(update, x, jnp.arange(4))[0]


def index(x):
    return ((x > 0) @ jnp.array([8, 4, 2, 1])).astype(int)


def test_gibbs_leaves_the_ising_ring_invariant_and_reaches_it():
    run = jax.jit(jax.vmap(lambda key, x: mcmc.run(ising_sweep, key, x, 20)))
    exact = SPINS[jax.random.categorical(jax.random.key(3), jnp.log(ISING), shape=(CHAINS,))]
    for start in (exact, jnp.ones((CHAINS, 4))):
        end = run(jax.random.split(jax.random.key(4), CHAINS), start)
        assert fits(index(end), ISING) > 1e-3
    assert fits(index(jnp.ones((CHAINS, 4))), ISING) < 1e-6


def test_step_t_has_the_key_fold_in_t():
    key = jax.random.key(5)
    _, used = mcmc.sample(lambda key, state: jax.random.key_data(key), key, jax.random.key_data(key), 6)
    expected = [jax.random.key_data(jax.random.fold_in(key, t)) for t in range(6)]
    np.testing.assert_array_equal(used, expected)
    x = jnp.ones(4)
    halves = mcmc.run(ising_sweep, key, mcmc.run(ising_sweep, key, x, 13), 9, first=13)
    np.testing.assert_array_equal(halves, mcmc.run(ising_sweep, key, x, 22))


@pytest.mark.parametrize("thin", [1, 4])
def test_thinning_changes_nothing_of_the_chain(thin):
    key = jax.random.key(6)
    _, every = mcmc.sample(ising_sweep, key, jnp.ones(4), 40)
    last, kept = mcmc.sample(ising_sweep, key, jnp.ones(4), 40 // thin, thin)
    np.testing.assert_array_equal(kept, every[thin - 1 :: thin])
    np.testing.assert_array_equal(last, every[-1])
    assert len(np.unique(every, axis=0)) > 2


# --- diagnostics ---


def autoregression(phi, chains, n, seed=0):
    """Stationary x_t = phi x_{t-1} + noise: [chains, n]."""
    noise = np.random.default_rng(seed).normal(size=(n, chains))
    x = [noise[0] / np.sqrt(1 - phi**2)]
    for e in noise[1:]:
        x.append(phi * x[-1] + e)
    return jnp.asarray(np.stack(x, axis=1), jnp.float32)


def test_effective_sample_size_of_autoregressions():
    phis = [-0.5, 0.0, 0.5, 0.9]
    chains = jnp.stack([autoregression(phi, 4, 20_001) for phi in phis], axis=-1)
    exact = [4 * 20_001 * (1 - phi) / (1 + phi) for phi in phis]
    np.testing.assert_allclose(jax.jit(mcmc.effective_sample_size)(chains), exact, rtol=0.1)


def test_effective_sample_size_of_chains_that_disagree():
    chains = autoregression(0.0, 4, 1000) + 5 * jnp.arange(4)[:, None]
    assert mcmc.effective_sample_size(chains) < 10
    # perfectly anticorrelated: capped, not infinite
    assert mcmc.effective_sample_size(jnp.tile(jnp.array([1.0, -1.0]), (4, 500))) <= 4000 * np.log10(4000) + 1


def test_split_rhat():
    chains = np.asarray(autoregression(0.5, 4, 1001))
    halves = np.concatenate([chains[:, :500], chains[:, 501:]])
    within = halves.var(axis=1, ddof=1).mean()
    expected = np.sqrt(499 / 500 + halves.mean(1).var(ddof=1) / within)
    np.testing.assert_allclose(mcmc.split_rhat(jnp.asarray(chains)), expected, rtol=1e-5)
    assert expected < 1.01
    apart = chains + 2 * np.arange(4)[:, None]
    drifting = chains + 0.004 * np.arange(1001)  # each chain has the same mean: only the halves tell
    both = mcmc.split_rhat(jnp.stack([jnp.asarray(apart), jnp.asarray(drifting)], axis=-1))
    # variance between the offsets 0, 2, 4, 6, each twice among the halves
    np.testing.assert_allclose(both[0], np.sqrt(1 + np.var([0, 2, 4, 6] * 2, ddof=1) / within), rtol=0.05)
    assert both[1] > 1.2


def test_diagnostics_of_chains_that_never_move():
    assert np.isnan(mcmc.split_rhat(jnp.ones((2, 10))))
    assert np.isnan(mcmc.effective_sample_size(jnp.ones((2, 10))))
    apart = jnp.broadcast_to(jnp.arange(2.0)[:, None], (2, 10))
    assert np.isposinf(mcmc.split_rhat(apart)) and np.isnan(mcmc.effective_sample_size(apart))


# --- annealed importance sampling of an RBM, from its base-rate model ---

_rng = np.random.default_rng(7)
WEIGHTS = jnp.asarray(_rng.normal(0, 1.2, (5, 3)), jnp.float32)
VISIBLE, HIDDEN, BASE = (jnp.asarray(_rng.normal(0, 0.7, n), jnp.float32) for n in (5, 3, 5))
LOG_Z0 = jax.nn.softplus(BASE).sum() + 3 * jnp.log(2.0)


def log_unnormalized(beta, v):
    return v @ ((1 - beta) * BASE + beta * VISIBLE) + jax.nn.softplus(beta * (v @ WEIGHTS + HIDDEN)).sum()


def transition(key, beta, v):
    key_h, key_v = jax.random.split(key)
    h = jax.random.bernoulli(key_h, jax.nn.sigmoid(beta * (v @ WEIGHTS + HIDDEN))).astype(float)
    logits = (1 - beta) * BASE + beta * (WEIGHTS @ h + VISIBLE)
    return jax.random.bernoulli(key_v, jax.nn.sigmoid(logits)).astype(float)


def init_sample(key):
    return jax.random.bernoulli(key, jax.nn.sigmoid(BASE)).astype(float)


def log_z(beta):
    states = jnp.array(list(itertools.product([0.0, 1.0], repeat=5)))
    return jax.nn.logsumexp(jax.vmap(lambda v: log_unnormalized(beta, v))(states))


@partial(jax.jit, static_argnums=(1, 2))
def anneal(key, steps, chains):
    betas = jnp.linspace(0, 1, steps + 1)
    return ais.log_partition(key, betas, init_sample, log_unnormalized, transition, LOG_Z0, chains)


def test_base_rate_model():
    np.testing.assert_allclose(LOG_Z0, log_z(0.0), rtol=1e-6)
    # far enough apart that an estimate that ignores the weights fails
    assert abs(LOG_Z0 - log_z(1.0)) > 0.5


def test_ais_finds_the_partition_function():
    result = anneal(jax.random.key(8), 200, 400)
    assert abs(result.log_z - log_z(1.0)) < 4 * result.stderr < 0.2
    np.testing.assert_allclose(
        result.log_z, LOG_Z0 + np.log(np.exp(np.asarray(result.log_weights, np.float64)).mean()), rtol=1e-5
    )
    weights = np.exp(np.asarray(result.log_weights, np.float64))
    np.testing.assert_allclose(result.ess, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4)
    assert result.ess > 200
    assert len(np.unique(result.log_weights)) > 390


@pytest.mark.parametrize(("steps", "chains"), [(1, 4), (4, 1), (8, 2)])
def test_ais_is_unbiased_however_short(steps, chains):
    keys = jax.random.split(jax.random.key(9), 2000)
    estimates = jnp.exp(jax.vmap(lambda key: anneal(key, steps, chains).log_z)(keys) - log_z(1.0))
    mean, stderr = mean_and_stderr(estimates)
    assert abs(mean - 1) < 4 * stderr < 0.2


def test_ais_standard_error_is_the_spread_over_keys():
    results = jax.vmap(lambda key: anneal(key, 10, 50))(jax.random.split(jax.random.key(10), 300))
    np.testing.assert_allclose(np.sqrt((results.stderr**2).mean()), results.log_z.std(), rtol=0.15)


def test_ais_without_steps_is_the_initial_distribution():
    result = anneal(jax.random.key(11), 0, 3)
    np.testing.assert_allclose(result.log_z, LOG_Z0, rtol=1e-6)
    np.testing.assert_allclose([result.ess, result.stderr], [3, 0], atol=1e-5)
