"""Every Monte Carlo estimator, value and gradient, within standard errors of a closed form."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dgm_jax.distributions import bernoulli_log_prob, bernoulli_sample, normal_kl, normal_log_prob
from dgm_jax.inference import estimators, importance
from dgm_jax.inference.divergences import DIVERGENCES
from dgm_jax.numerics import log_mean_exp, mean_and_stderr


def assert_within(estimate, exact, stderr, k=5):
    """Each leaf of the estimate lies within k of its standard errors, which are not vacuous."""
    for e, x, s in zip(*map(jax.tree.leaves, (estimate, exact, stderr)), strict=True):
        assert (np.isfinite(s) & (s > 0)).all()
        assert (np.abs(e - x) <= k * s).all(), (e, x, s)


def moments(tree):
    """Mean and standard error over the leading axis of every leaf."""
    return (jax.tree.map(lambda leaf: mean_and_stderr(leaf)[i], tree) for i in (0, 1))


def normal(key):
    return 1 + 2 * jax.random.normal(key)


# --- expectations, keys, chunks ---


def test_expectation():
    n = 20_000
    f = lambda x: {"first": x, "powers": jnp.stack([x**2, x**3])}  # noqa: E731
    mean, stderr = estimators.expectation(jax.random.key(0), normal, f, n, chunk=1000)
    assert_within(mean, {"first": 1.0, "powers": np.array([5.0, 13.0])}, stderr)
    # Var x = 4 and Var x^2 = 2 s^4 + 4 m^2 s^2 = 48
    np.testing.assert_allclose(stderr["first"], 2 / np.sqrt(n), rtol=0.03)
    np.testing.assert_allclose(stderr["powers"][0], np.sqrt(48 / n), rtol=0.06)


def test_draw_i_has_the_key_fold_in_i():
    key = jax.random.key(1)
    x = estimators.draws(key, normal, 9)
    np.testing.assert_allclose(x, [normal(jax.random.fold_in(key, i)) for i in range(9)], rtol=1e-6)
    pairs = jax.jit(jax.vmap(lambda k: estimators.draws(k, normal, 2)))(jax.random.split(key, 4000))
    assert abs(np.corrcoef(np.asarray(pairs).T)[0, 1]) < 5 / np.sqrt(4000)


def log_p(x):
    return normal_log_prob(x, 0.0, 1.0)


def cube(params, x):
    return x**3 + params["loc"] * x


def location_scale(params, key):
    return params["loc"] + params["scale"] * jax.random.normal(key)


def log_density(params, x):
    return normal_log_prob(x, params["loc"], params["scale"])


GAUSSIAN = {"loc": jnp.array(0.7), "scale": jnp.array(1.3)}


@pytest.mark.slow
def test_chunk_size_changes_nothing():
    key, n = jax.random.key(2), 11

    def sample(key):
        return location_scale(GAUSSIAN, key)

    def log_prob(x):
        return log_density(GAUSSIAN, x)

    @partial(jax.jit, static_argnums=0)
    def everything(chunk):
        return [
            estimators.expectation(key, sample, jnp.exp, n, chunk),
            estimators.pathwise_gradient(GAUSSIAN, key, location_scale, cube, n, chunk),
            estimators.score_gradient(GAUSSIAN, key, location_scale, log_density, cube, n, chunk=chunk),
            estimators.kl_divergence(key, log_prob, log_p, sample, n, chunk),
            estimators.f_divergence(key, DIVERGENCES["kl"], log_p, log_prob, sample, n, chunk),
            importance.self_normalized(key, sample, lambda x: log_p(x) - log_prob(x), jnp.exp, n, chunk),
        ]

    for chunk in (1, 4, 1000):  # 4 does not divide 11
        np.testing.assert_allclose(*(jax.tree.leaves(everything(c)) for c in (chunk, None)), rtol=1e-5)


# --- gradients ---


def exact_cube_gradient():
    def mean(params):  # E x^3 = m^3 + 3 m s^2
        m, s = params["loc"], params["scale"]
        return m**3 + 3 * m * s**2 + m**2

    return jax.grad(mean)(GAUSSIAN)


def test_pathwise_gradient():
    gradient, stderr = estimators.pathwise_gradient(GAUSSIAN, jax.random.key(3), location_scale, cube, 20_000)
    assert_within(gradient, exact_cube_gradient(), stderr)
    m, v = 0.7, 1.3**2
    variance = 9 * (2 * v**2 + 4 * m**2 * v) + v + 12 * m * v  # of d/dloc = 3 x^2 + x + loc
    np.testing.assert_allclose(stderr["loc"], np.sqrt(variance / 20_000), rtol=0.05)


def test_pathwise_gradient_of_the_reverse_kl():
    exact = jax.grad(lambda p: normal_kl(p["loc"], p["scale"], 0.0, 1.0))(GAUSSIAN)
    gradient, stderr = estimators.pathwise_gradient(
        GAUSSIAN, jax.random.key(8), location_scale, lambda p, x: log_density(p, x) - log_p(x), 10_000
    )
    assert_within(gradient, exact, stderr)


@pytest.mark.parametrize("baseline", [True, False])
def test_score_gradient_of_a_gaussian(baseline):
    gradient, stderr = estimators.score_gradient(
        GAUSSIAN, jax.random.key(4), location_scale, log_density, cube, 40_000, baseline
    )
    assert_within(gradient, exact_cube_gradient(), stderr)


BERNOULLI = {"logits": jnp.array([-1.0, 0.3, 2.0]), "shift": jnp.array(10.0)}


def bernoulli(params, key):
    return bernoulli_sample(key, params["logits"])


def log_bernoulli(params, x):
    return bernoulli_log_prob(x, params["logits"]).sum()


def quadratic(params, x):
    return (x @ jnp.array([1.0, -2.0, 0.5])) ** 2 + params["shift"] * (1 + x[0] * x[2])


def exact_bernoulli_gradient():
    states = jnp.array(list(itertools.product([0.0, 1.0], repeat=3)))

    def mean(params):
        return sum(jnp.exp(log_bernoulli(params, x)) * quadratic(params, x) for x in states)

    return jax.grad(mean)(BERNOULLI)


@cache
def bernoulli_gradients(n, baseline, keys):
    """(gradients, stderrs) of `keys` independent estimates from n draws each."""
    one = lambda k: estimators.score_gradient(BERNOULLI, k, bernoulli, log_bernoulli, quadratic, n, baseline)  # noqa: E731
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), keys))


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [True, False])
def test_score_gradient_of_bernoullis(baseline):
    # many estimates of two draws: a baseline that depends on its own draw would show in their mean
    gradients, _ = bernoulli_gradients(2, baseline, 10_000)
    mean, stderr = moments(gradients)
    assert_within(mean, exact_bernoulli_gradient(), stderr)


def test_leave_one_out_baseline_lowers_the_variance():
    spread = {b: bernoulli_gradients(64, b, 1000)[0]["logits"].var(0) for b in (True, False)}
    assert (spread[True] < 0.3 * spread[False]).all()


@pytest.mark.parametrize("baseline", [True, False])
def test_stderr_of_a_gradient_is_its_spread_over_keys(baseline):
    gradients, stderrs = bernoulli_gradients(64, baseline, 1000)
    estimated = np.sqrt((stderrs["logits"] ** 2).mean(0))
    np.testing.assert_allclose(estimated, gradients["logits"].std(0), rtol=0.12)


def test_baseline_takes_two_draws():
    with pytest.raises(ValueError, match="n >= 2"):
        bernoulli_gradients(1, True, 1)


# --- importance sampling ---


def test_effective_sample_size_of_weights():
    np.testing.assert_allclose(importance.effective_sample_size(jnp.full(7, -1e4)), 7, rtol=1e-5)
    np.testing.assert_allclose(importance.effective_sample_size(jnp.array([1e4, 0.0, -jnp.inf])), 1, rtol=1e-6)
    weights = np.random.default_rng(0).exponential(size=(9, 2)).astype(np.float32)
    expected = weights.sum(0) ** 2 / (weights**2).sum(0)
    np.testing.assert_allclose(importance.effective_sample_size(jnp.log(weights)), expected, rtol=1e-5)


def test_self_normalized():
    n, offset = 20_000, 37.0  # p is known up to a constant

    def log_weight(x):
        return log_p(x) - log_density(GAUSSIAN, x) + offset

    def estimate(key, n):
        sample = partial(location_scale, GAUSSIAN)
        return importance.self_normalized(key, sample, log_weight, lambda x: x**2 + x, n)

    result = estimate(jax.random.key(12), n)
    assert_within(result.mean, 1.0, result.stderr)
    p, q = stats.norm(0, 1), stats.norm(0.7, 1.3)
    second_moment = integrate.quad(lambda x: p.pdf(x) ** 2 / q.pdf(x), -12, 12)[0]
    np.testing.assert_allclose(result.ess, n / second_moment, rtol=0.03)
    many = jax.jit(jax.vmap(lambda key: estimate(key, 100)))(jax.random.split(jax.random.key(13), 1000))
    np.testing.assert_allclose(np.sqrt((many.stderr**2).mean()), many.mean.std(), rtol=0.12)


# z ~ N(0, 1), x | z ~ N(z, noise^2): log p(x) = N(0, 1 + noise^2), and the posterior is known
NOISE = 0.6
BATCH = {"x": jnp.array([-1.0, 0.2, 3.0])}
EXACT = stats.norm.logpdf(BATCH["x"], 0, np.sqrt(1 + NOISE**2))
POSTERIOR = {"gain": jnp.array(1 / (1 + NOISE**2)), "scale": jnp.array(NOISE / np.sqrt(1 + NOISE**2))}
CRUDE = {"gain": jnp.array(0.4), "scale": jnp.array(0.9)}


def draw(params, key, batch):
    loc = params["gain"] * batch["x"]
    z = loc + params["scale"] * jax.random.normal(key, loc.shape)
    return z, normal_log_prob(z, loc, params["scale"])


def log_joint(params, z, batch):
    return normal_log_prob(z, 0.0, 1.0) + normal_log_prob(batch["x"], z, NOISE)


def bounds(params, k, keys, chunk=64):
    one = lambda key: importance.importance_bound(draw, log_joint, params, key, BATCH, k, chunk)  # noqa: E731
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(14), keys))


def test_log_weights():
    key = jax.random.key(15)
    weights = importance.log_weights(draw, log_joint, CRUDE, key, BATCH, 4)
    for i in range(4):
        z, log_q = draw(CRUDE, jax.random.fold_in(key, i), BATCH)
        np.testing.assert_allclose(weights[i], log_joint(CRUDE, z, BATCH) - log_q, rtol=1e-5)
    assert len(np.unique(weights)) == weights.size


@pytest.mark.parametrize(("k", "chunk"), [(1, 64), (10, 1), (10, 10), (37, 3)])
def test_importance_bound_is_that_of_all_weights(k, chunk):
    key = jax.random.key(16)

    def whole(params):
        return log_mean_exp(importance.log_weights(draw, log_joint, params, key, BATCH, k), axis=0)

    def chunked(params):
        return importance.importance_bound(draw, log_joint, params, key, BATCH, k, chunk)

    results = (jax.jit(lambda p: (f(p), jax.grad(lambda p: f(p).sum())(p)))(CRUDE) for f in (chunked, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_importance_bound_is_tight_under_the_posterior():
    for k in (1, 50):
        np.testing.assert_allclose(bounds(POSTERIOR, k, 3), np.tile(EXACT, (3, 1)), rtol=1e-5)


def test_importance_bound_is_below_and_tightens():
    keys = 2000
    mean, stderr = zip(*(moments(bounds(CRUDE, k, keys)) for k in (1, 4, 16)), strict=True)
    for low, high, s in (
        (mean[0], mean[1], stderr[0]),
        (mean[1], mean[2], stderr[1]),
        (mean[2], EXACT, stderr[2]),
    ):
        assert (low < high - 3 * s).all()
    # k = 1 is the ELBO: log p(x) - KL(q | posterior)
    loc = BATCH["x"] / (1 + NOISE**2)
    gap = normal_kl(CRUDE["gain"] * BATCH["x"], CRUDE["scale"], loc, POSTERIOR["scale"])
    assert_within(mean[0], EXACT - gap, stderr[0])


def test_importance_weights_are_unbiased():
    mean, stderr = moments(jnp.exp(bounds(CRUDE, 5, 4000)))
    assert_within(mean, np.exp(EXACT), stderr)


@pytest.mark.slow
def test_importance_bound_survives_impossible_draws():
    def half(params, z, batch):
        return jnp.where(z > 1, log_joint(params, z, batch), -jnp.inf)

    bound = importance.importance_bound(draw, half, CRUDE, jax.random.key(17), BATCH, 100, 7)
    np.testing.assert_allclose(
        bound,
        log_mean_exp(importance.log_weights(draw, half, CRUDE, jax.random.key(17), BATCH, 100), 0),
        rtol=1e-5,
    )
    mean = importance.posterior_mean(draw, half, lambda z: z, CRUDE, jax.random.key(17), BATCH, 100, 7)
    whole = importance.posterior_mean(draw, half, lambda z: z, CRUDE, jax.random.key(17), BATCH, 100, 100)
    np.testing.assert_allclose(mean, whole, rtol=1e-5)

    def slope(chunk):
        def total(params):
            return importance.importance_bound(draw, half, params, jax.random.key(17), BATCH, 100, chunk).sum()

        return jax.grad(total)(CRUDE)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), slope(2), slope(100))
    never = importance.importance_bound(draw, lambda *a: jnp.full(3, -jnp.inf), CRUDE, jax.random.key(18), BATCH, 10, 3)
    np.testing.assert_array_equal(never, -jnp.inf)


def test_memory_of_the_importance_bound_does_not_grow_with_k():
    batch = {"x": jnp.zeros(4096)}

    def memory(k):
        bound = lambda key: importance.importance_bound(draw, log_joint, CRUDE, key, batch, k, 10)  # noqa: E731
        return jax.jit(bound).lower(jax.random.key(19)).compile().memory_analysis().temp_size_in_bytes

    assert memory(5000) < 1.1 * memory(50)
