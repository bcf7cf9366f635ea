"""Bounds of latent-variable models against quadrature, enumeration and closed forms, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from dgm_jax.inference.importance import importance_bound, log_weights
from dgm_jax.models import outputs
from dgm_jax.models.latent import vae
from dgm_jax.objectives.variational import elbo, iwae

BITS = 8
STATES = ((np.arange(2**BITS)[:, None] >> np.arange(BITS)) & 1).astype(np.float64)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rough(params, scale=0.8, seed=0):
    """The same tree with normal entries: far from what an initializer would give."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(scale * rng.normal(size=p.shape)), params)


def binary_vae(x=STATES, **kwargs):
    model = vae.make(shape=(x.shape[1],), latent=1, hidden=(5, 4), **kwargs)
    batch = {"x": jnp.asarray(x)}
    if kwargs.get("classes"):
        batch["cond"] = jnp.zeros(x.shape[0], jnp.int32)
    params = rough(model.init(jax.random.key(0), batch))
    # q is wider than the prior: bounded weights, whose standard errors can be trusted
    last = params["encoder"]["Dense_2"]
    last["kernel"], last["bias"] = 0.5 * last["kernel"].at[:, 1].multiply(0.2), last["bias"].at[1].set(0.2)
    return model, params, batch


# An independent VAE in numpy: tanh layers, a Bernoulli likelihood, and integrals over the noise by Gauss-Hermite


def layers(tree, x):
    for i in range(len(tree)):
        dense = tree[f"Dense_{i}"]
        x = x @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
        x = np.tanh(x) if i < len(tree) - 1 else x
    return x


def numpy_log_weights(params, x, noise):
    """log p(x, z) - log q(z | x) at z = m(x) + s(x) noise, latent = 1: [noise, B]."""
    loc, log_scale = layers(params["encoder"], x).T
    z = loc + np.exp(log_scale) * noise[:, None]
    logits = layers(params["decoder"], z[..., None]) + np.asarray(params["offset"])
    likelihood = (x * logits - np.logaddexp(0, logits)).sum(-1)
    return likelihood + scipy.stats.norm.logpdf(z) - scipy.stats.norm.logpdf(noise)[:, None] + log_scale


def quadrature_bound(params, x, k, nodes=48):
    """The bound with k = 1 or 2 draws: [B]."""
    noise, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    log_w = numpy_log_weights(params, x, noise)
    if k == 1:
        return weight @ log_w
    pairs = np.logaddexp(log_w[:, None], log_w[None]) - np.log(2)
    return np.einsum("i,j,ijb->b", weight, weight, pairs)


def exact_log_prob(params, x):
    """log p(x) by the trapezoidal rule over z, which converges exponentially here: [B]."""
    z = np.linspace(-10, 10, 4001)
    logits = layers(params["decoder"], z[:, None]) + np.asarray(params["offset"])
    joint = x @ logits.T - np.logaddexp(0, logits).sum(-1) + scipy.stats.norm.logpdf(z)
    return scipy.special.logsumexp(joint, axis=1) + np.log(z[1] - z[0])


@pytest.mark.slow
def test_log_weights_equal_numpy():
    model, params, batch = binary_vae()
    z, log_q = model.draw(params, jax.random.key(1), batch)
    loc, log_scale = layers(params["encoder"], STATES).T
    noise = (np.asarray(z)[:, 0] - loc) / np.exp(log_scale)
    np.testing.assert_allclose(
        model.log_joint(params, z, batch) - log_q,
        [numpy_log_weights(params, STATES, noise[[b]])[0, b] for b in range(2**BITS)],
        rtol=1e-9,
    )
    np.testing.assert_allclose(model.log_posterior(params, z, batch), log_q, rtol=1e-9)
    np.testing.assert_allclose(model.encode(params, None, batch)[:, 0], loc, rtol=1e-9)
    logits = layers(params["decoder"], np.asarray(z)) + np.asarray(params["offset"])
    np.testing.assert_allclose(model.decode(params, None, z), scipy.special.expit(logits), rtol=1e-9)


@pytest.mark.parametrize("classes", [0, 3])
def test_weights_are_unbiased_and_the_states_sum_to_one(classes):
    model, params, batch = binary_vae(classes=classes)
    draws = 4000
    log_w = jax.jit(lambda key: log_weights(model.draw, model.log_joint, params, key, batch, draws))
    w = np.exp(log_w(jax.random.key(2)))
    # a draw of every state at once is one estimate of sum_x p(x): the states' errors are independent
    stderr = w.std(0, ddof=1) / np.sqrt(draws)
    assert abs(w.mean(0).sum() - 1) < 4 * np.sqrt((stderr**2).sum())
    assert np.sqrt((stderr**2).sum()) < 0.01
    if not classes:
        errors = (w.mean(0) - np.exp(exact_log_prob(params, STATES))) / stderr
        assert np.abs(errors).max() < 5


@pytest.mark.slow
def test_bound_rises_with_k_to_the_exact_log_prob():
    model, params, batch = binary_vae()
    exact = exact_log_prob(params, STATES).mean()
    assert abs(scipy.special.logsumexp(exact_log_prob(params, STATES))) < 1e-9

    def values(k, repeats):
        loss = iwae(model, k).apply
        keys = jax.random.split(jax.random.key(k), repeats)
        return -np.asarray(jax.jit(jax.vmap(lambda key: loss(params, (), key, batch)[0]))(keys))

    ks, repeats = (1, 2, 8, 64), (3000, 3000, 1000, 200)
    bounds = [values(k, n) for k, n in zip(ks, repeats, strict=True)]
    means = np.array([b.mean() for b in bounds])
    stderrs = np.array([b.std(ddof=1) / np.sqrt(len(b)) for b in bounds])
    for k in (1, 2):
        quadrature = quadrature_bound(params, STATES, k).mean()
        assert abs(means[k - 1] - quadrature) < 4 * stderrs[k - 1]
    steps = np.diff(np.append(means, exact))
    noise = np.hypot(stderrs, np.append(stderrs[1:], 0))
    assert (steps > 4 * noise).all(), (means, exact, stderrs)


@pytest.mark.parametrize("gradient", ["plain", "stl", "dreg"])
def test_loss_is_minus_the_bound_of_the_same_key_whatever_its_gradient(gradient):
    model, params, batch = binary_vae()
    key = jax.random.key(3)
    for k in (1, 5):
        value, out = jax.jit(iwae(model, k, gradient).apply)(params, (), key, batch)
        bound = importance_bound(model.draw, model.log_joint, params, key, batch, k)
        np.testing.assert_allclose(value, -bound.mean(), rtol=1e-12)
        assert ("ess" in out.metrics) == (k > 1)
    assert 1 < out.metrics["ess"] < 5
    assert out.metrics["elbo"] > out.metrics["loss"]  # both bound -log p(x) from above


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "k"), [("plain", 1), ("stl", 1), ("dreg", 1), ("plain", 2), ("dreg", 2)])
def test_gradient_is_unbiased_for_encoder_and_decoder(gradient, k):
    """The directional derivatives of the quadrature bound, by finite differences, within standard errors."""
    x = STATES[[3, 77, 200]]
    model, params, batch = binary_vae(x)
    loss, repeats = iwae(model, k, gradient).apply, 20_000
    keys = jax.random.split(jax.random.key(4), repeats)
    grad = jax.grad(lambda p, key: loss(p, (), key, batch)[0])
    grads = jax.jit(jax.vmap(grad, (None, 0)))(params, keys)
    rng = np.random.default_rng(5)
    for part in ("encoder", "decoder", "offset", "encoder", "decoder"):
        direction = jax.tree.map(np.zeros_like, params)
        direction[part] = jax.tree.map(lambda p: rng.normal(size=p.shape), params[part])
        h = 1e-4
        ends = [
            quadrature_bound(jax.tree.map(lambda p, d: np.asarray(p) + s * d, params, direction), x, k).mean()
            for s in (h, -h)
        ]
        expected = -(ends[0] - ends[1]) / (2 * h)
        slopes = sum(
            np.tensordot(g, d, d.ndim) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
        )
        stderr = slopes.std(ddof=1) / np.sqrt(repeats)
        assert stderr < 0.05 * max(abs(expected), 1)
        assert abs(slopes.mean() - expected) < 4 * stderr, part


def linear_vae_at_its_posterior():
    """p(x | z) = N(W z + b, s^2) with q the exact posterior, and log p(x) in closed form."""
    rng = np.random.default_rng(6)
    dims = 5
    model = vae.make(shape=(dims,), latent=1, hidden=(), output="gaussian", shared_scale=True)
    x = rng.normal(size=(7, dims)) * 2
    batch = {"x": jnp.asarray(x)}
    params = rough(model.init(jax.random.key(0), batch))
    w = np.asarray(params["decoder"]["Dense_0"]["kernel"])
    b = np.asarray(params["decoder"]["Dense_0"]["bias"]) + np.asarray(params["offset"])
    variance = (outputs.MIN_SCALE + np.logaddexp(0, params["scale"][0])) ** 2
    precision = 1 + (w @ w.T)[0, 0] / variance
    to_mean = (w / variance / precision).T
    params["encoder"]["Dense_0"] = {
        "kernel": jnp.asarray(np.concatenate([to_mean, np.zeros((dims, 1))], axis=1)),
        "bias": jnp.asarray([(-b @ to_mean)[0], -0.5 * np.log(precision)]),
    }
    exact = scipy.stats.multivariate_normal(b, w.T @ w + variance * np.eye(dims)).logpdf(x)
    return model, params, batch, exact


def test_weights_are_constant_where_q_is_the_posterior():
    model, params, batch, exact = linear_vae_at_its_posterior()
    log_w = log_weights(model.draw, model.log_joint, params, jax.random.key(7), batch, 9)
    np.testing.assert_allclose(log_w, np.broadcast_to(exact, log_w.shape), rtol=1e-10)


@pytest.mark.slow
def test_variance_at_the_posterior():
    """There the encoder's gradient is 0: stl and dreg give it without noise, plain does not."""
    model, params, batch, _ = linear_vae_at_its_posterior()
    size = {}
    for gradient in ("plain", "stl", "dreg"):
        for k in (1, 5):
            loss = iwae(model, k, gradient).apply
            grad = jax.jit(jax.grad(lambda p, key, loss=loss: loss(p, (), key, batch)[0]))
            grads = [grad(params, key)["encoder"] for key in jax.random.split(jax.random.key(8), 20)]
            size[gradient, k] = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert size["plain", 1] > 0.1 and size["plain", 5] > 0.02
    for gradient in ("stl", "dreg"):
        assert size[gradient, 1] < 1e-10 and size[gradient, 5] < 1e-10


@pytest.mark.slow
def test_dreg_has_less_variance_than_plain_near_the_posterior():
    model, params, batch, _ = linear_vae_at_its_posterior()
    params["encoder"] = jax.tree.map(lambda p: p + 0.05, params["encoder"])
    variance = {}
    for gradient in ("plain", "dreg"):
        loss = iwae(model, 16, gradient).apply
        keys = jax.random.split(jax.random.key(9), 500)
        grad = jax.grad(lambda p, key, loss=loss: loss(p, (), key, batch)[0])
        grads = jax.jit(jax.vmap(grad, (None, 0)))(params, keys)
        variance[gradient] = sum(float(g.var(0).sum()) for g in jax.tree.leaves(grads["encoder"]))
    assert variance["dreg"] < 0.3 * variance["plain"]


def test_elbo_is_iwae_with_one_draw():
    model, params, batch = binary_vae()
    key = jax.random.key(10)
    one, other = (jax.jit(f.apply)(params, (), key, batch)[0] for f in (elbo(model), iwae(model, 1)))
    np.testing.assert_array_equal(one, other)


def test_padding_changes_nothing():
    model, params, batch = binary_vae(STATES[:6])
    loss = iwae(model, 3, "dreg").apply
    mask = jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    grad = jax.jit(jax.grad(lambda p, x: loss(p, (), jax.random.key(11), {"x": x, "mask": mask})[0]))
    with_padding, with_other_padding = (grad(params, x) for x in (batch["x"], batch["x"].at[4:].set(1 - STATES[4:6])))
    jax.tree.map(np.testing.assert_array_equal, with_padding, with_other_padding)


@pytest.mark.slow
def test_the_encoder_runs_once_and_dreg_costs_no_more_than_stl():
    model = vae.make(shape=(400,), latent=2, hidden=(60,))
    batch = {"x": jnp.zeros((20, 400))}
    params = model.init(jax.random.key(0), batch)

    def flops(k, gradient):
        loss = iwae(model, k, gradient).apply
        step = jax.jit(jax.grad(lambda p, key: loss(p, (), key, batch)[0]))
        return step.lower(params, jax.random.key(0)).compile().cost_analysis()["flops"]

    products = 20 * 400 * 60  # of the encoder's first layer, and of the decoder's last
    for gradient in ("plain", "stl", "dreg"):
        # a draw more costs 6 flops a product in the decoder, forward and two gradients, and 4 in the encoder
        assert 6 * products < (flops(9, gradient) - flops(1, gradient)) / 8 < 7 * products
    assert flops(9, "dreg") < 1.02 * flops(9, "stl")


def test_unknown_gradient_and_missing_capability():
    model, _, _ = binary_vae()
    with pytest.raises(ValueError, match="unknown gradient 'DREG'"):
        iwae(model, 5, "DREG")
    with pytest.raises(TypeError, match="log_posterior"):
        iwae(model._replace(log_posterior=None), 5, "dreg")
