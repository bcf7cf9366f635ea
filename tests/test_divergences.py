"""The table of f-divergences against the paper and its conjugates, and the estimators that read it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from dgm_jax.distributions import normal_kl, normal_log_prob
from dgm_jax.inference import estimators
from dgm_jax.inference.divergences import DIVERGENCES


def assert_within(estimate, exact, stderr, k=5):
    """The estimate lies within k of its standard errors, which is not vacuous."""
    assert 0 < stderr < np.inf
    assert abs(estimate - exact) <= k * stderr


# --- the table ---

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


# --- estimates ---


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
