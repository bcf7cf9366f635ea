"""Every Monte Carlo estimator, value and gradient, within standard errors of a closed form."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

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


def cube(params, x):
    return x**3 + params["loc"] * x


def location_scale(params, key):
    return params["loc"] + params["scale"] * jax.random.normal(key)


def log_density(params, x):
    return normal_log_prob(x, params["loc"], params["scale"])


GAUSSIAN = {"loc": jnp.array(0.7), "scale": jnp.array(1.3)}


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
    spread = jnp.sqrt(2.0) * 3 * 1.3**2  # d/dm = 3 x^2 + m + x: check its dominant part, 3 x^2, and no more
    assert 0.5 * spread < stderr["loc"] * np.sqrt(20_000) < 3 * spread


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


# --- divergences: the table ---

# the generators as the paper prints them, and f'(1) of its table 2
PRINTED = {
    "kl": (lambda u: u * np.log(u), 1),
    "reverse_kl": (lambda u: -np.log(u), -1),
    "pearson": (lambda u: (u - 1) ** 2, 0),
    "hellinger": (lambda u: (np.sqrt(u) - 1) ** 2, 0),
    "jensen_shannon": (lambda u: -(u + 1) * np.log((1 + u) / 2) + u * np.log(u), 0),
    "gan": (lambda u: u * np.log(u) - (u + 1) * np.log(u + 1), -np.log(2)),
}
# the free critic output at which g_f gives f'(u)
OPTIMAL = {
    "kl": lambda u: 1 + np.log(u),
    "reverse_kl": np.log,
    "pearson": lambda u: 2 * (u - 1),
    "hellinger": lambda u: np.log(u) / 2,
    "jensen_shannon": np.log,
    "gan": np.log,
}
NAMES = sorted(PRINTED)
RATIOS = np.array([1e-3, 0.1, 0.5, 1.0, 1.7, 10.0, 1e3])
OUTPUTS = np.linspace(-4, 4, 9)
P, Q = stats.norm(0, 1), stats.norm(0.5, 1.3)


def integral(f):
    return integrate.quad(f, -14, 14, epsabs=1e-11, limit=200)[0]


def exact_divergence(name):
    return integral(lambda x: Q.pdf(x) * PRINTED[name][0](P.pdf(x) / Q.pdf(x)))


def test_table_is_complete():
    assert sorted(DIVERGENCES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_generator(name):
    row, (printed, slope) = DIVERGENCES[name], PRINTED[name]
    with jax.enable_x64(True):
        np.testing.assert_allclose(row.f(jnp.asarray(RATIOS)), printed(RATIOS), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(row.f(jnp.array(1.0)), -np.log(4) if name == "gan" else 0, atol=1e-12)
        np.testing.assert_allclose(row.optimal_critic(jnp.array(1.0)), slope, atol=1e-12)
        slopes = jax.vmap(jax.grad(row.f))(jnp.asarray(RATIOS))
        np.testing.assert_allclose(row.optimal_critic(jnp.asarray(RATIOS)), slopes, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_conjugate_is_the_supremum(name):
    row, printed = DIVERGENCES[name], PRINTED[name][0]
    with jax.enable_x64(True):
        t = np.asarray(row.activation(jnp.asarray(OUTPUTS)))
        value = np.asarray(row.conjugate(jnp.asarray(t)))
        through = np.asarray(row.conjugate_activation(jnp.asarray(OUTPUTS)))
    assert (np.diff(t) > 0).all()
    np.testing.assert_allclose(through, value, rtol=1e-8, atol=1e-12)
    if name == "pearson":  # below t = -2 the supremum over u >= 0 is at its edge, where the paper's goes on
        t, value = t[t >= -2], value[t >= -2]
    for t_i, value_i in zip(t, value, strict=True):
        gap = lambda s: printed(np.exp(s)) - t_i * np.exp(s)  # noqa: E731
        found = optimize.minimize_scalar(gap, bounds=(-30, 15), method="bounded", options={"xatol": 1e-10})
        np.testing.assert_allclose(value_i, -found.fun, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fenchel_equality_at_the_optimal_critic(name):
    row = DIVERGENCES[name]
    with jax.enable_x64(True):
        t = row.optimal_critic(jnp.asarray(RATIOS))
        total = row.f(jnp.asarray(RATIOS)) + row.conjugate(t)
        np.testing.assert_allclose(total, RATIOS * t, rtol=1e-8, atol=1e-9)
        v = jnp.asarray(OPTIMAL[name](RATIOS))
        np.testing.assert_allclose(row.activation(v), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["jensen_shannon", "gan"])
def test_saturating_rows_are_finite_at_extremes(name):
    row, v = DIVERGENCES[name], jnp.array([-1e4, 1e4])
    for f, slopes in ((row.activation, [1, 0]), (row.conjugate_activation, [0, 1])):
        assert np.isfinite(f(v)).all()
        np.testing.assert_array_equal(jax.vmap(jax.grad(f))(v), slopes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl", 0), ("pearson", 1), ("hellinger", 1), ("jensen_shannon", np.log(2)), ("gan", 0)],
)
def test_generator_where_p_vanishes(name, value):
    np.testing.assert_allclose(DIVERGENCES[name].f(jnp.array(0.0)), value, rtol=1e-6)


# --- divergences: estimates ---


def log_p(x):
    return normal_log_prob(x, 0.0, 1.0)


def log_q(x):
    return normal_log_prob(x, 0.5, 1.3)


def sample_p(key):
    return jax.random.normal(key)


def sample_q(key):
    return 0.5 + 1.3 * jax.random.normal(key)


def test_kl_divergence_both_ways():
    forward = estimators.kl_divergence(jax.random.key(6), log_p, log_q, sample_p, 10_000)
    reverse = estimators.kl_divergence(jax.random.key(7), log_q, log_p, sample_q, 10_000)
    assert_within(forward[0], normal_kl(0.0, 1.0, 0.5, 1.3), forward[1])
    assert_within(reverse[0], normal_kl(0.5, 1.3, 0.0, 1.0), reverse[1])
    assert abs(forward[0] - reverse[0]) > 5 * reverse[1]  # the two are told apart


def test_pathwise_gradient_of_the_reverse_kl():
    exact = jax.grad(lambda p: normal_kl(p["loc"], p["scale"], 0.0, 1.0))(GAUSSIAN)
    gradient, stderr = estimators.pathwise_gradient(
        GAUSSIAN, jax.random.key(8), location_scale, lambda p, x: log_density(p, x) - log_p(x), 10_000
    )
    assert_within(gradient, exact, stderr)


@pytest.mark.parametrize("name", NAMES)
def test_f_divergence(name):
    value, stderr = estimators.f_divergence(
        jax.random.key(9), DIVERGENCES[name], log_p, log_q, sample_q, 20_000, chunk=5000
    )
    assert_within(value, exact_divergence(name), stderr)


@pytest.mark.parametrize("name", NAMES)
def test_variational_bound(name):
    row, exact = DIVERGENCES[name], exact_divergence(name)

    def bound(critic):
        x = np.linspace(-9, 9, 401)  # the trapezoidal rule is exact to rounding for such smooth integrands
        p, q = P.pdf(x), Q.pdf(x)
        t, conjugate = jax.jit(lambda v: (row.activation(v), row.conjugate_activation(v)))(critic(p / q))
        return np.sum(p * t - q * conjugate) * (x[1] - x[0])

    with jax.enable_x64(True):
        optimal = OPTIMAL[name]
        np.testing.assert_allclose(bound(optimal), exact, rtol=1e-6)
        for other in (lambda u: optimal(u) + 0.3, lambda u: 0.8 * optimal(u), lambda u: 0.0 * u):
            assert bound(other) < exact - 1e-4

    n = 20_000
    x_p, x_q = jax.random.normal(jax.random.key(10), (n,)), 0.5 + 1.3 * jax.random.normal(jax.random.key(11), (n,))
    v_p, v_q = (OPTIMAL[name](P.pdf(x) / Q.pdf(x)) for x in (x_p, x_q[: n // 2]))
    value, stderr = estimators.f_divergence_bound(row, jnp.asarray(v_p), jnp.asarray(v_q))
    assert_within(value, exact, stderr)


# --- importance sampling ---


def test_effective_sample_size_of_weights():
    np.testing.assert_allclose(importance.effective_sample_size(jnp.full(7, -1e4)), 7, rtol=1e-5)
    np.testing.assert_allclose(importance.effective_sample_size(jnp.array([1e4, 0.0, -jnp.inf])), 1, rtol=1e-6)
    weights = np.random.default_rng(0).exponential(size=(9, 2)).astype(np.float32)
    expected = weights.sum(0) ** 2 / (weights**2).sum(0)
    np.testing.assert_allclose(importance.effective_sample_size(jnp.log(weights)), expected, rtol=1e-5)


def test_self_normalized():
    n, offset = 20_000, 37.0  # p is known up to a constant

    def estimate(key, n):
        return importance.self_normalized(key, sample_q, lambda x: log_p(x) - log_q(x) + offset, lambda x: x**2 + x, n)

    result = estimate(jax.random.key(12), n)
    assert_within(result.mean, 1.0, result.stderr)
    second_moment = integral(lambda x: P.pdf(x) ** 2 / Q.pdf(x))
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


def test_importance_bound_survives_impossible_draws():
    def half(params, z, batch):
        return jnp.where(z > 1, log_joint(params, z, batch), -jnp.inf)

    bound = importance.importance_bound(draw, half, CRUDE, jax.random.key(17), BATCH, 100, 7)
    np.testing.assert_allclose(
        bound,
        log_mean_exp(importance.log_weights(draw, half, CRUDE, jax.random.key(17), BATCH, 100), 0),
        rtol=1e-5,
    )
    never = importance.importance_bound(draw, lambda *a: jnp.full(3, -jnp.inf), CRUDE, jax.random.key(18), BATCH, 10, 3)
    np.testing.assert_array_equal(never, -jnp.inf)


def test_memory_of_the_importance_bound_does_not_grow_with_k():
    batch = {"x": jnp.zeros(4096)}

    def memory(k):
        bound = lambda key: importance.importance_bound(draw, log_joint, CRUDE, key, batch, k, 10)  # noqa: E731
        return jax.jit(bound).lower(jax.random.key(19)).compile().memory_analysis().temp_size_in_bytes

    assert memory(5000) < 1.1 * memory(50)
