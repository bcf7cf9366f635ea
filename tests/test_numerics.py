"""numerics.py and distributions.py: value and gradient against scipy and closed forms, at extremes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from dgm_jax import distributions, numerics

LOGITS = [-1e4, -80.0, -30.0, -1.0, 0.0, 1e-3, 2.0, 30.0, 80.0, 1e4]


def value_and_grad(f, *args):
    """Elementwise value, and gradient in each argument."""
    gradient = jax.grad(lambda *a: f(*a).sum(), argnums=tuple(range(len(args))))
    return jax.jit(lambda *a: (f(*a), gradient(*a)))(*args)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4), (3, 0)])
def test_sum_event(shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = x.reshape(3, -1).sum(1) if x.ndim > 1 else x
    np.testing.assert_array_equal(numerics.sum_event(jnp.asarray(x)), expected)


@pytest.mark.parametrize("event", [(), (2,)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 7.0])
def test_padding_touches_neither_value_nor_gradient(event, bad):
    kept = np.random.default_rng(0).normal(size=(4, *event)).astype(np.float32)
    values = jnp.asarray(np.concatenate([kept[:2], np.full((3, *event), bad, np.float32), kept[2:]]))
    mask = jnp.array([1.0, 1, 0, 0, 0, 1, 1])
    for reduce in (numerics.masked_mean, lambda *a: numerics.mean_and_stderr(*a)[1]):
        value, (gradient,) = value_and_grad(lambda v: reduce(v, mask), values)
        expected, (reference,) = value_and_grad(reduce, jnp.asarray(kept))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient[mask != 0], reference, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(gradient[mask == 0], 0)


def test_empty_mask():
    values, mask = jnp.array([jnp.nan, 1.0]), jnp.zeros(2)
    value, gradient = jax.value_and_grad(numerics.masked_mean)(values, mask)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_mean_and_stderr():
    values = np.random.default_rng(1).normal(3, 2, 70_000).astype(np.float32)  # n^2 overflows int32
    mean, stderr = numerics.mean_and_stderr(jnp.asarray(values))
    np.testing.assert_allclose(mean, values.mean(dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(stderr, values.std(ddof=1, dtype=np.float64) / np.sqrt(values.size), rtol=1e-4)
    mask = jnp.arange(70_000) < 65_000
    np.testing.assert_allclose(
        numerics.mean_and_stderr(jnp.asarray(values), mask)[1],
        values[:65_000].std(ddof=1, dtype=np.float64) / np.sqrt(65_000),
        rtol=1e-4,
    )


def test_stderr_of_few_values():
    values = jnp.array([[1.0, 2.0], [4.0, 2.5], [2.0, -7.0]])
    mean, stderr = numerics.mean_and_stderr(values)
    np.testing.assert_allclose(mean, np.mean(values, 0), rtol=1e-6)
    np.testing.assert_allclose(stderr, stats.sem(values), rtol=1e-6)


def test_stderr_of_what_shows_no_spread():
    assert numerics.mean_and_stderr(jnp.array([2.0])) == (2, jnp.inf)
    assert numerics.mean_and_stderr(jnp.array([2.0, 9.0]), jnp.array([1.0, 0.0])) == (2, jnp.inf)
    stderr, gradient = jax.value_and_grad(lambda v: numerics.mean_and_stderr(v)[1])(jnp.full(3, 5.0))
    assert stderr == 0
    np.testing.assert_array_equal(gradient, 0)


def test_log_mean_exp():
    inf = np.inf
    x = jnp.array([[1e4, 1e4 - 1, -1e4], [0.0, 1.0, -inf], [-inf, -inf, -inf], [-1e4, -1e4, -1e4]])
    values, (gradient,) = value_and_grad(lambda x: numerics.log_mean_exp(x, 1), x)
    np.testing.assert_allclose(values, special.logsumexp(np.asarray(x, np.float64), 1) - np.log(3), rtol=1e-6)
    weights = np.array(special.softmax(np.asarray(x, np.float64)[[0, 1, 3]], 1))
    np.testing.assert_allclose(gradient[jnp.array([0, 1, 3])], weights, rtol=1e-6)
    np.testing.assert_array_equal(gradient[2], 0)  # all weights 0: -inf has no slope
    np.testing.assert_allclose(numerics.log_mean_exp(x[:2].T, 0), values[:2], rtol=1e-6)


def test_log1mexp_and_softplus_inverse():
    x = jnp.array([1e-30, 1e-8, 1e-3, 0.5, 0.7, 3.0, 40.0, 1e4])
    exact = np.asarray(x, np.float64)
    value, (gradient,) = value_and_grad(numerics.log1mexp, x)
    small, large = np.log(-np.expm1(-exact)), np.log1p(-np.exp(-np.maximum(exact, 0.1)))
    np.testing.assert_allclose(value, np.where(exact < 1, small, large), rtol=2e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(gradient, 1 / np.expm1(exact), rtol=2e-6)
    value, (gradient,) = value_and_grad(numerics.softplus_inverse, x)
    np.testing.assert_allclose(jax.nn.softplus(value), x, rtol=2e-5)
    np.testing.assert_allclose(gradient, -1 / np.expm1(-exact), rtol=2e-6)


def test_safe_log():
    tiny = np.finfo(np.float32).tiny
    value, (gradient,) = value_and_grad(numerics.safe_log, jnp.array([0.0, tiny / 2, 0.25, 1.0]))
    np.testing.assert_allclose(value, np.log([tiny, tiny, 0.25, 1]), rtol=1e-6)
    np.testing.assert_allclose(gradient, [0, 0, 4, 1])


@pytest.mark.parametrize("x", [0.0, 1.0, 0.3])
def test_bernoulli_log_prob(x):
    logits = jnp.array(LOGITS)
    exact = np.array(LOGITS, np.float64)
    log_prob = lambda l: distributions.bernoulli_log_prob(x, l)  # noqa: E731
    value, (gradient,) = value_and_grad(log_prob, logits)
    reference = -x * np.logaddexp(0, -exact) - (1 - x) * np.logaddexp(0, exact)
    np.testing.assert_allclose(value, reference, rtol=1e-6, atol=0)
    sigmoid = special.expit(exact)
    np.testing.assert_allclose(gradient, x - sigmoid, rtol=1e-6, atol=1e-7)
    curvature = jax.jit(jax.vmap(jax.grad(jax.grad(log_prob))))(logits)
    np.testing.assert_allclose(curvature, -sigmoid * special.expit(-exact), rtol=1e-5, atol=1e-38)


def test_bernoulli_entropy_and_kl():
    q, p = (jnp.asarray(a.ravel()) for a in np.meshgrid(LOGITS, LOGITS))
    q64, p64 = np.asarray(q, np.float64), np.asarray(p, np.float64)

    def log_probs(logits):
        return -np.logaddexp(0, -logits), -np.logaddexp(0, logits)

    value, (gradient_q, gradient_p) = value_and_grad(distributions.bernoulli_kl, q, p)
    reference = sum(np.exp(a) * (a - b) for a, b in zip(log_probs(q64), log_probs(p64), strict=True))
    np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-7)
    slope = special.expit(q64) * special.expit(-q64)
    np.testing.assert_allclose(gradient_q, slope * (q64 - p64), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient_p, special.expit(p64) - special.expit(q64), rtol=1e-4, atol=1e-6)

    value, (gradient,) = value_and_grad(distributions.bernoulli_entropy, q)
    np.testing.assert_allclose(value, -sum(np.exp(a) * a for a in log_probs(q64)), rtol=1e-5, atol=1e-38)
    np.testing.assert_allclose(gradient, -slope * q64, rtol=1e-4, atol=1e-6)


def test_categorical_log_prob():
    logits = jnp.array([[1e4, 0.0, -1e4], [1.0, 2.0, 3.0], [0.0, -jnp.inf, 1.0]])
    index = jnp.array([2, 0, 2])
    value, gradient = jax.value_and_grad(lambda l: distributions.categorical_log_prob(index, l).sum())(logits)
    log_probs = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    np.testing.assert_allclose(value, log_probs[np.arange(3), index].sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.eye(3)[index] - np.exp(log_probs), atol=1e-6)
    for outside in (3, -1):
        assert jnp.isnan(distributions.categorical_log_prob(jnp.array(outside), jnp.zeros(3)))


@pytest.mark.parametrize(
    ("log_prob", "reference"),
    [(distributions.normal_log_prob, stats.norm), (distributions.logistic_log_prob, stats.logistic)],
)
def test_location_scale_families(log_prob, reference):
    x, loc, scale = (jnp.array(a) for a in ([-3.0, 0.5, 40.0, 1e4], [0.1, 0.5, -2.0, 0.0], [1e-3, 2.0, 5.0, 1.0]))
    exact = [np.asarray(a, np.float64) for a in (x, loc, scale)]
    value, gradients = value_and_grad(log_prob, x, loc, scale)
    np.testing.assert_allclose(value, reference.logpdf(*exact), rtol=1e-5)
    for i, gradient in enumerate(gradients):
        step = [1e-5 * (i == j) * exact[2] for j in range(3)]
        up, down = ([a + sign * s for a, s in zip(exact, step, strict=True)] for sign in (1, -1))
        slope = (reference.logpdf(*up) - reference.logpdf(*down)) / (2 * step[i])
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_standard_normal_log_prob():
    x = jnp.array([0.0, -2.0, 30.0])
    np.testing.assert_allclose(distributions.standard_normal_log_prob(x), stats.norm.logpdf(x), rtol=1e-6)


def test_normal_kl():
    arguments = jnp.array([[0.3, 2.0, -1.0, 0.5], [0.0, 1.0, 0.0, 1.0], [1.0, 0.1, 1.2, 3.0]]).T
    value, gradients = value_and_grad(distributions.normal_kl, *arguments)
    for i, (m, s, n, t) in enumerate(np.asarray(arguments, np.float64).T):
        q, p = stats.norm(m, s), stats.norm(n, t)
        expected = integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), m - 12 * s, m + 12 * s)[0]
        np.testing.assert_allclose(value[i], expected, rtol=1e-5, atol=1e-12)
        slopes = [(m - n) / t**2, s / t**2 - 1 / s, (n - m) / t**2, 1 / t - (s**2 + (m - n) ** 2) / t**3]
        np.testing.assert_allclose([g[i] for g in gradients], slopes, rtol=1e-5, atol=1e-7)


GRID = jnp.linspace(-1, 1, 256)


def discretized(loc, log_scale, x=GRID):
    ones = jnp.ones_like(x)
    return distributions.discretized_logistic_log_prob(x, loc * ones, log_scale * ones, 2 / 255, -1.0, 1.0)


@jax.jit
def total_and_sum(loc, log_scale):
    """The total mass of the grid and the sum of its logarithms, each with gradients in both arguments."""
    functions = (lambda *a: jnp.exp(discretized(*a)).sum(), lambda *a: discretized(*a).sum())
    return [jax.value_and_grad(f, (0, 1))(loc, log_scale) for f in functions]


@pytest.mark.parametrize("log_scale", [-20.0, -7.0, -3.0, 0.0, 7.0, 20.0])
@pytest.mark.parametrize("loc", [-50.0, -1.0, 0.1])
def test_discretized_logistic_sums_to_one(log_scale, loc):
    (value, gradients), logarithms = total_and_sum(loc, log_scale)
    np.testing.assert_allclose(value, 1, rtol=2e-6)
    assert abs(gradients[0]) < 2e-6 * np.exp(-log_scale)  # the scale sets the unit
    np.testing.assert_allclose(gradients[1], 0, atol=1e-5)
    assert np.isfinite(jax.tree.leaves(logarithms)).all()


def test_discretized_logistic_is_a_difference_of_distribution_functions():
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 256)
        value = discretized(0.13, -2.0, x)
        edges = np.concatenate([[-np.inf], np.linspace(-1, 1, 256)[1:] - 1 / 255, [np.inf]])
        reference = np.log(np.diff(stats.logistic.cdf(edges, 0.13, np.exp(-2.0))))
        np.testing.assert_allclose(value, reference, rtol=1e-9)


@pytest.mark.slow
def test_discretized_logistic_far_from_its_centre():
    # the mass underflows to 0, its logarithm does not: it falls by 1 / scale per unit
    value, slope = jax.value_and_grad(lambda loc: discretized(loc, -7.0, GRID[100:101])[0])(30.0)
    inverse = np.exp(7.0)
    expected = -(30 - float(GRID[100]) - 1 / 255) * inverse + np.log1p(-np.exp(-2 / 255 * inverse))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, -inverse, rtol=1e-6)


def test_samplers():
    n = 20_000
    logits = jnp.array([-1e4, -1.0, 0.5, 1e4])
    for temperature in (1.0, 0.3):
        x = distributions.bernoulli_sample(jax.random.key(0), jnp.tile(logits, (n, 1)), temperature)
        assert x.dtype == jnp.float32
        assert set(np.unique(x)) == {0, 1}
        p = special.expit(np.asarray(logits) / temperature)
        assert (np.abs(x.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
    loc, scale = jnp.tile(jnp.array([-3.0, 2.0]), (n, 1)), jnp.tile(jnp.array([0.1, 4.0]), (n, 1))
    x = distributions.normal_sample(jax.random.key(1), loc, scale)
    assert (np.abs(x.mean(0) - loc[0]) < 5 * scale[0] / np.sqrt(n)).all()
    np.testing.assert_allclose(x.std(0), scale[0], rtol=5 / np.sqrt(2 * n))
    slopes = jax.grad(lambda *a: distributions.normal_sample(jax.random.key(1), *a).sum(), (0, 1))(loc, scale)
    np.testing.assert_allclose(slopes[0], 1)
    np.testing.assert_allclose(slopes[1] * scale, x - loc, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept(dtype):
    mask = jnp.ones(2, jnp.float32)

    def everything(x, key):
        return [
            numerics.sum_event(x),
            numerics.masked_mean(x, mask),
            numerics.mean_and_stderr(x, mask),
            numerics.log_mean_exp(x, 0),
            numerics.log1mexp(x),
            numerics.softplus_inverse(x),
            numerics.safe_log(x),
            distributions.bernoulli_log_prob(x, x),
            distributions.bernoulli_entropy(x),
            distributions.bernoulli_kl(x, x),
            distributions.bernoulli_sample(key, x),
            distributions.categorical_log_prob(jnp.array(0), x),
            distributions.normal_log_prob(x, x, x),
            distributions.normal_log_prob(x, 0.0, 1.0),
            distributions.standard_normal_log_prob(x),
            distributions.normal_kl(x, x, 0.0, 1.0),
            distributions.normal_sample(key, x, x),
            distributions.logistic_log_prob(x, x, x),
            distributions.discretized_logistic_log_prob(x, x, x, 0.1, 0.0, 1.0),
        ]

    with jax.enable_x64(True):
        results = jax.eval_shape(everything, jnp.ones(2, dtype), jax.random.key(0))
    assert {result.dtype for result in jax.tree.leaves(results)} == {jnp.dtype(dtype)}
