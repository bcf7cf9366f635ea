"""Factor analysis and probabilistic PCA against scipy, scikit-learn, the closed form, and a linear VAE."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.decomposition import FactorAnalysis

from dgm_jax.inference.importance import log_weights
from dgm_jax.models import outputs
from dgm_jax.models.latent import factor_analysis, vae
from dgm_jax.numerics import softplus_inverse
from dgm_jax.objectives.variational import elbo

DIMS, LATENT = 6, 2
both = pytest.mark.parametrize("noise", factor_analysis.NOISES)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def make(noise, shape=(2, 3)):
    """The model with its functions compiled: an operation at a time they would be slow."""
    model = factor_analysis.make(shape=shape, latent=LATENT, noise=noise)
    static = {"sample": 2, "prior": 2}
    functions = {name: f for name, f in model._asdict().items() if callable(f)}
    return model._replace(**{name: jax.jit(f, static_argnums=static.get(name, ())) for name, f in functions.items()})


def build(noise, seed=0):
    """A model of events [2, 3] at random parameters, its covariance, and data from elsewhere."""
    model = make(noise)
    rng = np.random.default_rng(seed)
    batch = {"x": jnp.asarray(data(9))}
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape)), shapes)
    variance = np.broadcast_to(np.exp(2 * np.asarray(params["log_scale"])), DIMS)
    covariance = np.asarray(params["loadings"]).T @ np.asarray(params["loadings"]) + np.diag(variance)
    return model, params, covariance, batch


def data(n, seed=1):
    """Correlated events [n, 2, 3], whose dimensions differ in scale and mean."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, LATENT)) @ rng.normal(size=(LATENT, DIMS)) * 2
    x += rng.normal(size=(n, DIMS)) * rng.uniform(0.5, 2, DIMS)
    return (x + 3 * rng.normal(size=DIMS)).reshape(n, 2, 3)


def some_observed(n, seed=2):
    """A mask in which one example has all its pixels, and one has none."""
    observed = np.random.default_rng(seed).random((n, 2, 3)) < 0.6
    observed[0], observed[1] = True, False
    return observed


def exact_log_probs(params, covariance, x, observed):
    values = []
    for row, seen in zip(x.reshape(-1, DIMS), observed.reshape(-1, DIMS), strict=True):
        mean = np.asarray(params["mean"])[seen]
        normal = scipy.stats.multivariate_normal(mean, covariance[np.ix_(seen, seen)]) if seen.any() else None
        values.append(normal.logpdf(row[seen]) if normal else 0.0)
    return np.array(values)


@both
def test_log_prob_is_that_of_scipy_whatever_is_observed(noise):
    model, params, covariance, batch = build(noise)
    x, observed = np.asarray(batch["x"]), some_observed(9)
    expected = exact_log_probs(params, covariance, x, np.ones_like(observed))
    np.testing.assert_allclose(model.log_prob(params, None, batch), expected, rtol=1e-10)
    hidden = {"x": jnp.where(observed, x, jnp.nan), "observed": jnp.asarray(observed, float)}
    expected = exact_log_probs(params, covariance, x, observed)
    np.testing.assert_allclose(model.log_prob(params, None, hidden), expected, rtol=1e-10, atol=1e-10)


@both
def test_the_posterior_is_exact_whatever_is_observed(noise):
    """log p(x, z) - log p(z | x) = log p(x) at any z; draws have the posterior's log-density, mean and spread."""
    model, params, _, batch = build(noise)
    batch |= {"observed": jnp.asarray(some_observed(9), float)}
    exact = model.log_prob(params, None, batch)
    z = jnp.asarray(np.random.default_rng(3).normal(size=(9, LATENT)) * 2)
    log_q = model.log_posterior(params, z, batch)
    np.testing.assert_allclose(model.log_joint(params, z, batch) - log_q, exact, rtol=1e-9, atol=1e-9)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn, log_q = jax.jit(jax.vmap(model.draw, (None, 0, None)))(params, keys, batch)
    again = jax.jit(jax.vmap(model.log_posterior, (None, 0, None)))(params, drawn, batch)
    np.testing.assert_allclose(log_q, again, rtol=1e-9)
    mean = np.asarray(model.encode(params, None, batch))
    stderr = drawn.std(0) / np.sqrt(4000)
    assert (np.abs(drawn.mean(0) - mean) < 5 * stderr).all()
    # an example of which nothing is seen has the prior's
    np.testing.assert_allclose(mean[1], 0, atol=1e-12)
    np.testing.assert_allclose(log_q[:, 1], model.log_prior(params, drawn[:, 1], batch), rtol=1e-9)


@both
def test_samples_and_completions_have_their_moments(noise):
    model, params, covariance, batch = build(noise)
    n = 20_000
    x = np.asarray(model.sample(params, jax.random.key(0), n)).reshape(n, DIMS)
    np.testing.assert_allclose(x.mean(0), params["mean"], atol=6 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=8 * covariance.max() / np.sqrt(n))

    seen = np.array([1, 0, 0, 1, 1, 0], bool)
    given = jnp.broadcast_to(batch["x"][:1], (n, 2, 3))
    observed = jnp.broadcast_to(jnp.asarray(seen.reshape(1, 2, 3), float), (n, 2, 3))
    x = model.complete(params, jax.random.key(1), {"x": given, "observed": observed})
    x, given, mean = np.asarray(x).reshape(n, DIMS), np.asarray(given)[0].ravel(), np.asarray(params["mean"])
    np.testing.assert_array_equal(x[:, seen], np.broadcast_to(given[seen], (n, 3)))
    gain = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    left = covariance[np.ix_(~seen, ~seen)] - gain @ covariance[np.ix_(seen, ~seen)]
    expected = mean[~seen] + gain @ (given[seen] - mean[seen])
    np.testing.assert_allclose(x[:, ~seen].mean(0), expected, atol=6 * np.sqrt(left.max() / n))
    np.testing.assert_allclose(np.cov(x[:, ~seen].T), left, atol=8 * left.max() / np.sqrt(n))


def em(model, batch, steps):
    """The log-likelihoods of so many steps, and the last parameters."""

    @jax.jit
    def run(params):
        def step(params, _):
            statistics, log_likelihood = model.expect(params, None, batch)
            return model.maximize(statistics), log_likelihood.mean()

        return jax.lax.scan(step, params, None, steps)

    params, values = run(model.init(jax.random.key(4), batch))
    return np.asarray(values), params


def test_em_reaches_the_closed_form_and_never_descends():
    model = make("isotropic")
    batch = {"x": jnp.asarray(data(60))}
    values, params = em(model, batch, 600)
    assert np.diff(values).min() > -1e-10 and values[-1] - values[0] > 0.5
    best = factor_analysis.principal_components(batch["x"], LATENT)
    assert abs(model.log_prob(best, None, batch).mean() - values[-1]) < 1e-7
    for gram in (lambda p: p["loadings"].T @ p["loadings"], lambda p: p["mean"], lambda p: p["log_scale"]):
        np.testing.assert_allclose(gram(params), gram(best), atol=1e-4)


def test_the_closed_form_is_a_maximum():
    model = make("isotropic")
    batch = {"x": jnp.asarray(data(60))}
    best = factor_analysis.principal_components(batch["x"], LATENT)
    grads = jax.jit(jax.grad(lambda params: model.log_prob(params, None, batch).mean()))(best)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-10
    with pytest.raises(ValueError, match="6 factors of 6 dimensions"):
        factor_analysis.principal_components(batch["x"], 6)


@pytest.mark.slow
def test_em_reaches_the_likelihood_of_scikit_learn():
    model = make("diagonal")
    batch = {"x": jnp.asarray(data(200))}
    values, _ = em(model, batch, 4000)
    assert np.diff(values).min() > -1e-10
    x = data(200).reshape(200, DIMS)
    theirs = FactorAnalysis(LATENT, tol=1e-10, max_iter=5000, svd_method="lapack").fit(x)
    assert abs(theirs.score(x) - values[-1]) < 1e-6


@both
def test_em_with_missing_pixels_never_descends(noise):
    model = make(noise)
    observed = some_observed(60)
    batch = {"x": jnp.where(observed, data(60), jnp.nan), "observed": jnp.asarray(observed, float)}
    values, params = em(model, batch, 60)
    assert np.diff(values).min() > -1e-10 and values[-1] - values[0] > 0.1
    # Fisher's identity: the M-step moves uphill in the likelihood of what is observed
    grads = jax.jit(jax.grad(lambda params: model.log_prob(params, None, batch).mean()))(params)
    statistics, _ = model.expect(params, None, batch)
    moved = jax.tree.map(jnp.subtract, model.maximize(statistics), params)
    assert all((grads[name] * moved[name]).sum() > 0 for name in ("loadings", "mean", "log_scale"))


@both
def test_em_in_float32_is_as_good_far_from_zero(noise):
    """On whole numbers, all of which float32 has, about 0 and 2,000 deviations from there."""
    with jax.enable_x64(False):
        model, x, observed = make(noise), np.round(8 * data(60)), some_observed(60)
        for given in ({}, {"observed": jnp.asarray(observed, jnp.float32)}):
            near, far = (em(model, {"x": jnp.asarray(x + c, jnp.float32), **given}, 60) for c in (0, 50_000))
            np.testing.assert_allclose(far[0], near[0], rtol=1e-4)
            np.testing.assert_allclose(far[1]["mean"] - 50_000, near[1]["mean"], atol=0.1)
            for name in ("loadings", "log_scale"):
                np.testing.assert_allclose(far[1][name], near[1][name], atol=0.05)


def test_padding_adds_nothing():
    model, params, _, batch = build("diagonal")
    padded = {"x": batch["x"].at[6:].set(jnp.nan), "mask": (jnp.arange(9) < 6).astype(float)}
    first = {"x": batch["x"][:6]}
    for f in (lambda b: model.expect(params, None, b)[0], lambda b: model.init(jax.random.key(0), b)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), f(padded), f(first))


def test_a_constant_pixel_has_noise_that_is_not_zero():
    model = make("diagonal")
    batch = {"x": jnp.asarray(data(60)).at[:, 0, 0].set(5.0)}
    values, params = em(model, batch, 50)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(np.exp(params["log_scale"][0]), factor_analysis.MIN_SCALE)


def linear_vae(params):
    """A VAE without hidden layers that has these params of an isotropic model as its decoder, and its own encoder."""
    model = vae.make(shape=(DIMS,), latent=LATENT, hidden=(), output="gaussian", shared_scale=True)
    scale = jnp.exp(params["log_scale"]) - outputs.MIN_SCALE
    own = {
        "decoder": {"Dense_0": {"kernel": params["loadings"], "bias": jnp.zeros(DIMS)}},
        "offset": params["mean"],
        "prior": {},
        "posterior": {},
        "scale": softplus_inverse(scale)[None],
    }
    return model, own


def factors_of(own):
    """The decoder of a linear VAE as params of an isotropic model."""
    dense = own["decoder"]["Dense_0"]
    scale = outputs.MIN_SCALE + jax.nn.softplus(own["scale"][0])
    return {"loadings": dense["kernel"], "mean": dense["bias"] + own["offset"], "log_scale": jnp.log(scale)}


def test_a_linear_vae_with_the_exact_posterior_has_the_exact_value_and_gradient():
    """E_q[log p(x, z) - log q(z | x)] over the posterior: z enters as a square, so that 2 K points give it exactly."""
    exact, params, _, batch = build("isotropic")
    batch = {"x": batch["x"].reshape(-1, DIMS)}
    model, own = linear_vae(params)
    mean = exact.encode(params, None, batch)
    precision = jnp.eye(LATENT) + params["loadings"] @ params["loadings"].T / jnp.exp(2 * params["log_scale"])
    factor = jnp.linalg.cholesky(jnp.linalg.inv(precision))
    points = jnp.sqrt(LATENT) * jnp.concatenate([factor.T, -factor.T])

    def bound(own):
        z = mean[None] + points[:, None]
        log_w = jax.vmap(lambda z: model.log_joint(own, z, batch) - exact.log_posterior(params, z, batch))(z)
        return log_w.mean()

    def log_prob(own):
        return exact.log_prob(factors_of(own), None, batch).mean()

    results = [jax.jit(jax.value_and_grad(f))(own) for f in (bound, log_prob)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *results)
    assert all(jnp.abs(g).max() > 1e-3 for g in jax.tree.leaves(results[0][1]))


@pytest.mark.slow
def test_a_linear_vae_trains_to_the_closed_form():
    """At a maximum the factors can be turned so that the posterior is diagonal (Lucas et al. 2019): no gap is left."""
    model = vae.make(shape=(DIMS,), latent=LATENT, hidden=(), output="gaussian", shared_scale=True)
    x = data(60).reshape(60, DIMS)
    batch = {"x": jnp.asarray((x - x.mean(0)) / x.std())}
    loss, steps = elbo(model, "stl").apply, 8000
    tx = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    @jax.jit
    def train(params):
        def step(carry, t):
            params, opt = carry
            grads = jax.grad(lambda params: loss(params, (), jax.random.fold_in(jax.random.key(5), t), batch)[0])(
                params
            )
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    params = train(model.init(jax.random.key(6), batch))
    exact = make("isotropic", (DIMS,))
    best = exact.log_prob(factor_analysis.principal_components(batch["x"], LATENT), None, batch).mean()
    assert abs(exact.log_prob(factors_of(params), None, batch).mean() - best) < 1e-3
    log_w = log_weights(model.draw, model.log_joint, params, jax.random.key(7), batch, 20)
    assert abs(log_w.mean() - best) < 5e-3
