"""Bijectors: the inverse, and log-determinants against the Jacobian; couplings, flows and their densities alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from dgm_jax import bijectors as B
from dgm_jax.models.flows import realnvp
from dgm_jax.nets.conv import depth_to_space, space_to_depth

FLOWS = {
    "vector": {"shape": (5,), "net": "mlp", "width": 8, "couplings": 3},
    "flattened": {"shape": (2, 3, 1), "net": "mlp", "width": 8, "couplings": 2},
    "image": {"shape": (4, 2, 3), "width": 8, "depth": 1, "couplings": 2, "scales": 2},
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def coupling(seed=0, dims=4):
    """A coupling whose log-scales and shifts are nonlinear in what it keeps."""
    weights = normal(seed, dims, 2 * dims)
    mask = jnp.arange(dims) % 2
    return B.affine_coupling(mask, lambda kept: jnp.split(jnp.tanh(kept @ weights), 2, axis=-1))


def flow(name):
    """A model with random parameters: its own start at zero in every last layer."""
    model = realnvp.make(**FLOWS[name])
    x = normal(1, 2, *FLOWS[name]["shape"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"x": x})
    flat, unravel = ravel_pytree(jax.tree.map(lambda p: jnp.zeros(p.shape), shapes))
    return model, unravel(0.3 * normal(2, flat.size)), x


def flip(x):
    return x[:, ::-1]


def shifted(mask, w=1.0):
    """A coupling whose log-scale for a variable is a function of its neighbour."""
    return B.affine_coupling(mask, lambda kept: (w * jnp.roll(kept, 1, -1), kept - w))


CASES = {
    "coupling": ((4,), coupling),
    "inverted": ((4,), lambda: B.invert(coupling())),
    "chain": ((4,), lambda: B.chain(coupling(0), B.rearrange(flip, flip), coupling(1))),
    "scan": ((4,), lambda: B.scan(lambda w: shifted(jnp.eye(4)[0], w), normal(0, 3))),
    "on_last_half": ((2, 4), lambda: B.on_last_half(shifted(jnp.eye(2)))),
    "squeeze": ((4, 2, 3), lambda: B.rearrange(space_to_depth, depth_to_space)),
}


def log_dets(function, x):
    """Of the Jacobian of a function of batches, example by example."""
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda one: function(one[None])[0])))(x)
    size = x[0].size
    return np.linalg.slogdet(np.asarray(jacobians).reshape(-1, size, size))[1]


@pytest.mark.parametrize("name", CASES)
def test_inverse_and_log_det(name):
    shape, make = CASES[name]
    bijector, x = make(), normal(3, 2, *shape)
    y, log_det = jax.jit(bijector.forward)(x)
    back, back_log_det = jax.jit(bijector.inverse)(y)
    np.testing.assert_allclose(back, x, atol=1e-10)
    np.testing.assert_allclose(back_log_det, -log_det, atol=1e-10)
    np.testing.assert_allclose(log_det, log_dets(lambda x: bijector.forward(x)[0], x), atol=1e-10)
    assert log_det.shape == (2,) and y.dtype == jnp.float64
    assert name == "squeeze" or not np.allclose(log_det, 0)


def test_a_coupling_keeps_what_its_mask_keeps():
    x = normal(0, 3, 4)
    y, _ = coupling().forward(x)
    np.testing.assert_array_equal(y[:, 1::2], x[:, 1::2])
    assert np.all(y[:, ::2] != x[:, ::2])


def test_scan_is_the_chain_of_its_steps():
    weights, x = normal(0, 3, 4, 8), normal(1, 2, 4)

    def one(w):
        return B.affine_coupling(jnp.arange(4) < 2, lambda kept: jnp.split(jnp.sin(kept @ w), 2, axis=-1))

    steps = B.chain(*(one(w) for w in weights))
    for run, expected in zip(B.scan(one, weights), steps, strict=True):
        jax.tree.map(np.testing.assert_allclose, run(x), expected(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_realnvp_is_a_change_of_variables(name):
    model, params, x = flow(name)

    z = jax.jit(model.encode)(params, None, {"x": x})
    assert z.shape == x.shape
    assert np.all(z != x)  # no variable passes through
    np.testing.assert_allclose(jax.jit(model.decode)(params, None, z), x, atol=1e-9)
    base = scipy.stats.norm.logpdf(z).reshape(2, -1).sum(-1)
    log_det = log_dets(lambda x: model.encode(params, None, {"x": x}), x)
    np.testing.assert_allclose(jax.jit(model.log_prob)(params, None, {"x": x}), base + log_det, atol=1e-9)


def test_realnvp_gradient_is_that_of_its_finite_differences():
    model, params, x = flow("vector")
    flat, unravel = ravel_pytree(params)
    value = jax.jit(lambda flat: model.log_prob(unravel(flat), None, {"x": x}).sum())
    direction = normal(4, flat.size) / np.sqrt(flat.size)
    h = 1e-5
    numeric = (value(flat + h * direction) - value(flat - h * direction)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(flat) @ direction, numeric, rtol=1e-6)


def test_realnvp_samples_are_decoded_noise():
    model, params, _ = flow("vector")
    key = jax.random.key(5)
    x = model.sample(params, key, 2000, temperature=0.5)
    z = np.asarray(model.encode(params, None, {"x": x})).ravel()
    assert scipy.stats.kstest(z, scipy.stats.norm(scale=0.5).cdf).pvalue > 1e-3
    np.testing.assert_allclose(
        model.sample(params, key, 3, temperature=0.0)[0], model.sample(params, key, 1, None, 0)[0]
    )


def test_realnvp_refuses_unknown_nets():
    with pytest.raises(ValueError, match="'resnet' or 'mlp'"):
        realnvp.make(shape=(4, 4, 1), net="cnn")
