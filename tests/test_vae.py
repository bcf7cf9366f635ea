"""The VAE's parts: posteriors against the Jacobians of their flows, priors, outputs, what is missing, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from rows import passed

from dgm_jax.inference.importance import log_weights
from dgm_jax.models.autoregressive import gated_pixelcnn, made
from dgm_jax.models.latent import pixel_vae, posteriors, priors, vae
from dgm_jax.objectives.variational import beta_vae, elbo, iwae
from dgm_jax.training.learners import gradient
from dgm_jax.verification import bounds, capabilities, check, drawn
from dgm_jax.verification.space import Space

LATENT = 3
POSTERIORS = {
    "diagonal": lambda: posteriors.diagonal(LATENT),
    "planar": lambda: posteriors.planar(LATENT, 3),
    "iaf": lambda: posteriors.iaf(LATENT, 3, (5,), "tanh"),
}
GREYS = Space((2,), (0.0, 1.0, 2.0, 3.0), (0.0, 3.0), 0)
IMAGES = Space((2, 2, 1), (0.0, 1.0), (0.0, 1.0), 3)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rough(tree, scale=0.7):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape)), tree)


def test_planar_flows_that_almost_fold_have_a_finite_density():
    """Where w.u is -1 but for rounding, in single precision, with hardly any noise that tanh could be far from 0."""
    posterior = posteriors.planar(2, 1)
    w, u = np.array([3.0, 4.0]), -np.linspace(1.0, 6.0, 500)[:, None] * np.array([3.0, 4.0])
    raw = np.concatenate([np.zeros((500, 2)), np.full((500, 2), -20.0), np.tile(w, (500, 1)), u, np.zeros((500, 1))], 1)
    _, log_q = posterior.draw({}, jax.random.key(0), jnp.asarray(raw, jnp.float32))
    assert np.isfinite(log_q).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_a_flow_has_the_density_that_its_jacobian_says(name):
    """Where z is a function of the base's draw, log q(z) is the base's less log |det dz / dloc|."""
    posterior = POSTERIORS[name]()
    params = rough(posterior.init(jax.random.key(0)))
    raw, key = rough(jnp.zeros((4, posterior.size))), jax.random.key(2)
    draw = jax.jit(posterior.draw)
    z, log_q = draw(params, key, raw)
    _, log_base = posteriors.diagonal(LATENT).draw({}, key, raw)

    def moved(loc):
        return draw(params, key, raw.at[:, :LATENT].set(loc))[0]

    jacobian = jnp.einsum("bibj->bij", jax.jit(jax.jacobian(moved))(raw[:, :LATENT]))
    np.testing.assert_allclose(log_q, log_base - jnp.linalg.slogdet(jacobian)[1], rtol=1e-9)
    if posterior.log_prob is not None:
        np.testing.assert_allclose(posterior.log_prob(params, z, raw), log_q, rtol=1e-9)
    still = raw.at[:, LATENT : 2 * LATENT].set(-40.0)  # without noise
    np.testing.assert_allclose(posterior.center(params, raw), draw(params, key, still)[0], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vamp", "made"])
def test_a_prior_is_a_density_and_is_drawn_from(name):
    if name == "vamp":
        prior = priors.vamp(1, 4, lambda params, u: u @ params["encoder"])
    else:
        prior = priors.of_model(1, made.make(shape=(1,), hidden=(4,), output="gaussian", components=3))
    params = {"encoder": rough(jnp.zeros((2, 2))), "prior": prior.init(jax.random.key(0), rough(jnp.zeros((6, 2))))}
    z = jnp.linspace(-12, 12, 6001)
    density = np.exp(jax.jit(prior.log_prob)(params, z[:, None]))
    cdf = np.cumsum(density) * (z[1] - z[0])
    np.testing.assert_allclose(cdf[-1], 1, atol=1e-5)
    drawn = np.asarray(prior.sample(params, jax.random.key(1), 2000, 1.0))[:, 0]
    assert scipy.stats.kstest(drawn, lambda at: np.interp(at, z, cdf)).pvalue > 0.001
    narrow = np.asarray(prior.sample(params, jax.random.key(1), 2000, 0.0))[:, 0]
    assert len(np.unique(narrow.round(6))) <= 4  # the components' centres


VARIANTS = {
    "categorical, planar": (GREYS, {"output": "categorical", "levels": 4, "posterior": "planar"}),
    "mixture, iaf, made": (
        GREYS,
        {"output": "logistic", "levels": 4, "components": 2, "posterior": "iaf", "flow_hidden": (4,)}
        | {"prior": "made", "prior_components": 2, "prior_hidden": (4,)},
    ),
    "logistic, vamp": (GREYS, {"output": "logistic", "levels": 4, "shared_scale": True, "prior": "vamp"}),
    "residual": (IMAGES, {"net": "conv", "hidden": (4,), "blocks": 1, "activation": "elu", "classes": 3}),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS])
def test_every_variant_is_a_bound_and_draws_from_itself(name):
    space, options = VARIANTS[name]
    model = vae.make(**{"shape": space.shape, "latent": 2, "hidden": (6,), "prior_components": 5} | options)
    given = model, space, 0
    assert passed(
        [
            check("bound", bounds.bound, *given),
            check("rates", bounds.rates, *given),
            check("sample", drawn.sampled, *given),
            check("keys", capabilities.keys_used_once, *given),
        ]
    ) == {"bound", "rates", "sample", "keys"}


@pytest.mark.slow
@pytest.mark.parametrize("cond_shape", [(4,), (2, 2, 1), (4, 4, 2)])
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_conditions_of_any_shape_reach_both_nets(net, cond_shape):
    model = vae.make(shape=(4, 4, 1), latent=2, hidden=(4,), net=net, cond_shape=cond_shape)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2, size=(3, 4, 4, 1)).astype(float))
    batch = {"x": x, "cond": jnp.asarray(rng.normal(size=(3, *cond_shape)))}
    params = model.init(jax.random.key(0), batch)
    other = {**batch, "cond": batch["cond"].at[1].add(1.0)}
    z, _ = model.draw(params, jax.random.key(1), batch)
    moved, _ = model.draw(params, jax.random.key(1), other)
    assert (np.abs(z - moved).max(1) > 1e-6).tolist() == [False, True, False]
    change = np.abs(model.log_joint(params, z, batch) - model.log_joint(params, z, other))
    assert (change > 1e-6).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="conditional on"):
        model.sample(params, jax.random.key(2), 3, batch["cond"][:, :1, ...] if net == "conv" else None)


@pytest.mark.slow
def test_what_is_missing_is_neither_read_nor_scored():
    """The weights of a batch with "observed" sum to one over what is observed."""
    model = vae.make(shape=(5,), latent=1, hidden=(5,))
    states = ((np.arange(32)[:, None] >> np.arange(5)) & 1).astype(float)
    observed = np.array([1, 0, 1, 1, 0.0])
    shown = states[(states * (1 - observed)).sum(1) == 0]
    batch = {"x": jnp.asarray(shown), "observed": jnp.broadcast_to(observed, shown.shape)}
    params = rough(model.init(jax.random.key(0), batch))
    w = np.exp(log_weights(model.draw, model.log_joint, params, jax.random.key(1), batch, 4000))
    error = np.sqrt((w.var(0, ddof=1) / len(w)).sum())
    assert abs(w.mean(0).sum() - 1) < 4 * error < 0.2
    hidden = {**batch, "x": jnp.asarray(np.where(observed, shown, 1.0))}
    draw = model.draw(params, jax.random.key(2), batch)
    jax.tree.map(np.testing.assert_array_equal, draw, model.draw(params, jax.random.key(2), hidden))


@pytest.mark.slow
def test_the_pixelcnn_of_a_pixel_vae_is_given_what_z_is_decoded_to():
    sizes = {"features": 4, "layers": 2, "first": 3, "head": 4}
    model = pixel_vae.make(shape=(3, 4, 1), latent=2, hidden=(5,), context=3, classes=2, **sizes)
    pixels = gated_pixelcnn.make(shape=(3, 4, 1), cond_map=3, **sizes)
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.integers(0, 2, size=(6, 3, 4, 1)).astype(float)), "cond": jnp.asarray([0, 1] * 3)}
    params = rough(model.init(jax.random.key(0), batch))
    z, _ = model.draw(params, jax.random.key(1), batch)
    first, last = (jax.tree.map(np.asarray, params["decoder"][f"Dense_{i}"]) for i in range(2))
    h = np.maximum(np.hstack([z, np.eye(2)[batch["cond"]]]) @ first["kernel"] + first["bias"], 0)
    seen = (h @ last["kernel"] + last["bias"]).reshape(-1, 3, 4, 3)
    expected = pixels.log_prob(params["model"], None, {**batch, "cond": jnp.asarray(seen)})
    found = model.log_joint(params, z, batch) - model.log_prior(params, z, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="give whole examples"):
        model.log_joint(params, z, {**batch, "observed": jnp.ones_like(batch["x"])})


@pytest.mark.parametrize("output", ["bernoulli", "gaussian", "logistic", "categorical"])
def test_hidden_values_change_nothing_of_training(output):
    """Initial parameters, loss and gradient; also where a careless source left something in place of zeros."""
    model = vae.make(shape=(6,), latent=2, hidden=(5,), output=output, components=1, levels=2)
    loss = iwae(model, k=3)
    rng = np.random.default_rng(0)
    x, observed = rng.integers(2, size=(8, 6)).astype(float), jnp.asarray(rng.random((8, 6)) < 0.5, float)
    mask = jnp.array([1.0] * 6 + [0.0] * 2)

    @jax.jit
    def outcome(x):
        batch = {"x": x, "observed": observed, "mask": mask}
        params = model.init(jax.random.key(0), batch)
        return params, jax.value_and_grad(lambda params: loss.apply(params, (), jax.random.key(0), batch)[0])(params)

    found = outcome(jnp.asarray(x))
    other = outcome(jnp.where(observed == 0, 1 - x, x))
    jax.tree.map(np.testing.assert_array_equal, found, other)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1][1]))


@pytest.mark.slow
@pytest.mark.parametrize("output", ["bernoulli", "gaussian", "categorical"])
def test_an_output_starts_at_the_marginals_of_what_is_observed(output):
    rng = np.random.default_rng(1)
    x = rng.integers(3 if output == "categorical" else 2, size=(3000, 4)).astype(float)
    observed = (rng.random((3000, 4)) < 0.4).astype(float)
    model = vae.make(shape=(4,), latent=2, hidden=(5,), output=output, levels=3)
    batch = {"x": jnp.asarray(x * observed), "observed": jnp.asarray(observed)}
    params = model.init(jax.random.key(0), batch)
    params = jax.tree.map(jnp.zeros_like, params) | {"offset": params["offset"]}
    found = model.decode(params, None, jnp.zeros((1, 2)))[0]
    np.testing.assert_allclose(found, (x * observed).sum(0) / observed.sum(0), atol=1e-3)


def test_a_shared_scale_starts_at_the_deviation_of_all_values():
    """Also where most dimensions are constant; of what is observed."""
    rng = np.random.default_rng(2)
    x = np.where(np.arange(6) < 2, rng.normal(size=(500, 6)), 0.5)
    observed = (rng.random(x.shape) < 0.5).astype(float)
    model = vae.make(shape=(6,), latent=2, hidden=(5,), output="gaussian", shared_scale=True)
    for batch, values in (({}, x), ({"observed": jnp.asarray(observed)}, x[observed == 1])):
        (scale,) = model.init(jax.random.key(0), {"x": jnp.asarray(x)} | batch)["scale"]
        np.testing.assert_allclose(jax.nn.softplus(scale), values.std(), rtol=0.02)


def small():
    model = vae.make(shape=(4,), latent=2, hidden=(5,))
    batch = {"x": jnp.asarray(np.random.default_rng(0).integers(0, 2, size=(6, 4)).astype(float))}
    return model, rough(model.init(jax.random.key(0), batch)), batch


@pytest.mark.slow
def test_beta_vae_weighs_rates():
    model, params, batch = small()
    key = jax.random.key(3)
    rates, distortion = model.rate_distortion(params, jax.random.fold_in(key, 0), batch)
    rates, distortion = rates.mean(0), distortion.mean()
    floor = float(rates.mean())  # between the two groups
    for options, expected in (
        ({}, rates.sum()),
        ({"beta": 4.0}, 4 * rates.sum()),
        ({"free": floor}, np.maximum(rates, floor).sum()),
    ):
        loss, out = beta_vae(model, **options).apply(params, (), key, batch)
        np.testing.assert_allclose(loss, distortion + expected, rtol=1e-12)
        np.testing.assert_allclose(out.metrics["elbo"], distortion + rates.sum(), rtol=1e-12)
    keys = jax.random.split(key, 4000)
    found, other = (
        np.asarray(jax.vmap(lambda key, loss=loss: loss.apply(params, (), key, batch)[0])(keys))
        for loss in (beta_vae(model), elbo(model))
    )
    assert abs(found.mean() - other.mean()) < 4 * np.hypot(found.std(), other.std()) / np.sqrt(len(keys))
    assert found.std() < other.std()  # the rates are in closed form


@pytest.mark.parametrize("micro", [1, 3])
def test_warm_up_counts_steps_and_not_micro_batches(micro):
    model, _, batch = small()
    learner = gradient(model.init, beta_vae(model, beta=2.0, warmup=4), optax.sgd(0.0), micro)
    key = jax.random.key(5)
    state = learner.init(key, batch)
    for step in range(6):
        state, metrics = jax.jit(learner.step)(state, key, batch)
        weight = 2.0 * min(step / 4, 1)
        np.testing.assert_allclose(metrics["loss"], metrics["distortion"] + weight * metrics["rate"], rtol=1e-9)


def test_errors_say_what_goes_together():
    for options, words in (
        ({"net": "cnn"}, "unknown net 'cnn'"),
        ({"prior": "flow"}, "unknown prior 'flow'"),
        ({"posterior": "full"}, "unknown posterior 'full'"),
        ({"shared_scale": True}, "no scale to share"),
        ({"prior": "vamp", "classes": 2}, "without conditions"),
        ({"posterior": "iaf", "refine": 2}, "refine=2 is of a diagonal posterior"),
    ):
        with pytest.raises(ValueError, match=words):
            vae.make(**{"shape": (4,)} | options)
    planar = vae.make(shape=(4,), posterior="planar")
    with pytest.raises(TypeError, match="log_posterior"):
        elbo(planar, "stl")
