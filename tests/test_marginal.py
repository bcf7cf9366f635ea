"""log p(x) by annealed importance sampling against exact values: from below, and on simulated data from both sides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from dgm_jax.inference import marginal, mcmc
from dgm_jax.inference.marginal import Annealing
from dgm_jax.models.latent import factor_analysis, vae
from dgm_jax.numerics import mean_and_stderr


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# --- Hamiltonian transitions of a curved density, whose state is a tree: a ~ N(0, 1), b | a ~ N(a^2, 1/4) ---

CHAINS = 4000


def log_banana(x):
    return -0.5 * x["a"] ** 2 - 0.5 * ((x["b"] - x["a"] ** 2) / 0.5) ** 2


def banana_chains(x, steps, log_prob=log_banana):
    kernel = mcmc.hmc(log_prob, 0.25, jnp.array([1.0, 2.0]), leapfrog=5)

    def chain(key, x):
        def step(x, t):
            return kernel(jax.random.fold_in(key, t), x)

        return jax.lax.scan(step, x, jnp.arange(steps))

    return jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), CHAINS), x)


def fits_banana(x):
    """The smaller p-value of two normal variables made of the state."""
    residual = (x["b"] - x["a"] ** 2) / 0.5
    return min(scipy.stats.kstest(np.asarray(z), "norm").pvalue for z in (x["a"], residual))


def test_hmc_leaves_its_target_invariant_and_reaches_it():
    a, noise = np.random.default_rng(0).normal(size=(2, CHAINS))
    x = {"a": jnp.asarray(a), "b": jnp.asarray(a**2 + 0.5 * noise)}
    end, acceptance = banana_chains(x, 4)
    assert fits_banana(x) > 1e-3 and fits_banana(end) > 1e-3
    assert 0.5 < acceptance.mean() < 0.97 and np.abs(end["a"] - a).mean() > 0.3
    elsewhere = {"a": jnp.zeros(CHAINS), "b": jnp.zeros(CHAINS)}
    assert fits_banana(banana_chains(elsewhere, 200)[0]) > 1e-3


# --- annealing for a linear Gaussian model, whose latents are given as a tree ---

DIMS, LATENT = 4, 2


def split(z):
    return {"first": z[:, :1], "rest": z[:, 1:]}


def join(tree):
    return jnp.concatenate([tree["first"], tree["rest"]], axis=-1)


def linear():
    """The model, its capabilities with tree-shaped latents and a posterior that is too narrow, and params."""
    model = factor_analysis.make(shape=(DIMS,), latent=LATENT, noise="isotropic")
    rng = np.random.default_rng(1)
    params = {
        "loadings": jnp.asarray(0.7 * rng.normal(size=(LATENT, DIMS))),
        "mean": jnp.asarray(rng.normal(size=DIMS)),
        "log_scale": jnp.asarray(-0.2),
    }

    def narrow(params):
        return {**params, "log_scale": params["log_scale"] - 0.5, "mean": params["mean"] + 0.2}

    def draw(params, key, batch):
        z, log_q = model.draw(narrow(params), key, batch)
        return split(z), log_q

    def dream(params, key, n, cond=None):
        z, x = model.dream(params, key, n)
        return split(z), x

    as_tree = model._replace(
        draw=draw,
        log_posterior=lambda params, z, batch: model.log_posterior(narrow(params), join(z), batch),
        log_joint=lambda params, z, batch: model.log_joint(params, join(z), batch),
        log_prior=lambda params, z, batch: model.log_prior(params, join(z), batch),
        prior=lambda params, key, n, cond=None: split(model.prior(params, key, n)),
        dream=dream,
    )
    return model, as_tree, params


def path_of(start):
    _, model, _ = linear()
    if start == "prior":
        return marginal.from_prior(model.prior, model.log_prior, model.log_joint)
    return marginal.from_posterior(model.draw, model.log_posterior, model.log_joint)


@partial(jax.jit, static_argnums=(0, 1, 3))
def estimates(start, annealing, key, repeats):
    """Estimates of three examples, with independent keys, and their exact values: [repeats, 3]."""
    model, _, params = linear()
    x = model.sample(params, jax.random.key(2), 3) + 0.5

    def one(key):
        keys = jax.random.split(key, 3)
        path = path_of(start)
        return jax.vmap(lambda key, x: marginal.log_marginal(key, path(params, {"x": x}), annealing))(keys, x)

    return jax.vmap(one)(jax.random.split(key, repeats)), model.log_prob(params, None, {"x": x})


@pytest.mark.slow
@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_ais_is_unbiased_and_below_on_average(start):
    """However short: adaptation by the chains' own states would show."""
    found, exact = estimates(start, Annealing(5, 2, 3), jax.random.key(3), 1500)
    mean, stderr = mean_and_stderr(jnp.exp(found.log_z - exact[None]))
    assert (np.abs(mean - 1) < 4 * stderr).all() and stderr.max() < 0.1
    short = (exact[None] - found.log_z).mean(0)
    assert (short > 3 * found.log_z.std(0) / np.sqrt(1500)).all()


@pytest.mark.slow
def test_ais_finds_log_p_within_its_error():
    found, exact = estimates("prior", Annealing(60, 20, 5), jax.random.key(5), 30)
    error = np.abs(found.log_z - exact[None])
    assert (error < 5 * found.stderr).all() and found.stderr.mean() < 0.2 and found.ess.mean() > 12
    assert abs((found.log_z - exact[None]).mean()) < 0.02


@pytest.mark.slow
def test_one_temperature_is_the_importance_weighted_bound():
    _, model, params = linear()
    path = path_of("posterior")(params, {"x": jnp.ones(DIMS)})
    found = jax.jit(lambda key: marginal.log_marginal(key, path, Annealing(1, 2000, 1)))(jax.random.key(6))
    keys = jax.random.split(jax.random.key(7), 2000)
    batch = {"x": jnp.ones((1, DIMS))}

    @jax.jit
    @jax.vmap
    def log_weight(key):
        z, log_q = model.draw(params, key, batch)
        return model.log_joint(params, z, batch) - log_q

    log_w = log_weight(keys)[:, 0]
    assert scipy.stats.ks_2samp(np.asarray(found.log_weights), np.asarray(log_w)).pvalue > 1e-3


@pytest.mark.slow
def test_chunks_change_nothing():
    _, _, params = linear()
    path = path_of("prior")(params, {"x": jnp.ones(DIMS)})

    def weights(chunk):
        return jax.jit(lambda key: marginal.log_marginal(key, path, Annealing(3, 5, 2, chunk)))(jax.random.key(8))

    np.testing.assert_allclose(*(weights(chunk).log_weights for chunk in (None, 2)), rtol=1e-9)


@pytest.mark.parametrize("shape", [(1,), (4, 10)])
def test_the_pilot_finds_step_sizes_that_are_accepted(shape):
    """Of a density far narrower than the one it starts from."""
    scale = jnp.exp(jnp.linspace(-3, -2, int(np.prod(shape)))).reshape(shape)
    path = marginal.Path(
        lambda key: jax.random.normal(key, shape),
        lambda z: jax.scipy.stats.norm.logpdf(z).sum(),
        lambda z: jax.scipy.stats.norm.logpdf(z / scale).sum(),
    )
    tuning = jax.jit(lambda key: marginal.tune(key, path, 60, 5))(jax.random.key(9))
    assert tuning.betas[0] == 0 and tuning.betas[-1] == 1 and (np.diff(tuning.betas) > 0).all()
    kernel = mcmc.hmc(path.log_joint, tuning.step_sizes[-1], tuning.variance, 5)
    z = scale[None] * jax.random.normal(jax.random.key(10), (500, *shape))
    _, acceptance = jax.jit(jax.vmap(kernel))(jax.random.split(jax.random.key(11), 500), z)
    assert 0.35 < acceptance.mean() < 0.9
    assert tuning.step_sizes[0] / tuning.step_sizes[-1] > 2


def test_latents_that_are_not_real_are_refused():
    path = marginal.from_prior(lambda params, key, n, cond: jnp.zeros((n, 2), int), None, None)({}, {"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="these are int64"):
        marginal.log_marginal(jax.random.key(0), path, Annealing())


@pytest.mark.slow
def test_bdmc_holds_log_p_between_its_ends():
    model, as_tree, params = linear()
    n = 600
    few = Annealing(8, 2, 3)
    run = jax.jit(lambda key: marginal.bdmc(path_of("posterior"), as_tree.dream, params, key, n, few))
    found = run(jax.random.key(12))
    exact = model.log_prob(params, None, {"x": found.x})
    for ratio in (found.lower - exact, exact - found.upper):  # both are unbiased, of p(x) and of 1 / p(x)
        mean, stderr = mean_and_stderr(jnp.exp(ratio))
        assert abs(mean - 1) < 4 * stderr < 0.2
        mean, stderr = mean_and_stderr(ratio)
        assert mean < -3 * stderr
    np.testing.assert_allclose(found.x.mean(0), params["mean"], atol=0.4)


@pytest.mark.slow
def test_bdmc_closes_in_on_a_nonlinear_decoder():
    """A Bernoulli VAE with two latents, whose exact values are sums over a grid of z."""
    bits = 8
    model = vae.make(shape=(bits,), latent=2, hidden=(6,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"x": jnp.zeros((1, bits))})
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    path = marginal.from_prior(model.prior, model.log_prior, model.log_joint)
    run = jax.jit(lambda key: marginal.bdmc(path, model.dream, params, key, 40, Annealing(100, 8, 5)))
    found = run(jax.random.key(13))
    axis = np.linspace(-7, 7, 150)
    z = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))

    def exact(x):
        joint = model.log_joint(params, z, {"x": jnp.broadcast_to(x[None], (len(z), bits))})
        return jax.nn.logsumexp(joint) + 2 * jnp.log(axis[1] - axis[0])

    values = jax.jit(lambda x: jax.lax.map(exact, x))(found.x)
    assert 0 < (found.upper - found.lower).mean() < 0.5
    np.testing.assert_allclose(found.lower, values, atol=0.5)
    np.testing.assert_allclose(found.upper, values, atol=0.5)
