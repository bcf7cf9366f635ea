"""What ends a likelihood: each output's mean is that of its own probabilities, and of its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.models import outputs

LEVELS = 16
VALUES = {"binary": np.arange(2.0), "levels": np.arange(float(LEVELS)), "real": np.linspace(-60, 60, 60_001)}


@pytest.mark.parametrize("name", outputs.OUTPUTS)
def test_mean(name):
    with jax.enable_x64(True):
        output = outputs.make(name, components=3, levels=LEVELS)
        raw = jnp.asarray(np.random.default_rng(0).normal(size=(5, output.size)))
        x = VALUES[output.support]
        p = np.exp(jax.jit(output.log_prob)(jnp.asarray(x)[:, None], jnp.broadcast_to(raw, (len(x), *raw.shape))))
        p *= x[1] - x[0]
        np.testing.assert_allclose(p.sum(0), 1, rtol=1e-6)
        mean = jax.jit(output.mean)(raw)
        np.testing.assert_allclose(mean, x @ p, atol=1e-5)
        drawn = np.asarray(output.sample(jax.random.key(0), jnp.broadcast_to(raw, (20_000, *raw.shape)), 1.0))
        error = np.sqrt((x**2 @ p - (x @ p) ** 2) / len(drawn))
        assert (np.abs(drawn.mean(0) - mean) < 4.5 * error).all()


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_logistics_of_any_scale_are_finite(scale):
    output = outputs.make("logistic", components=2, levels=4)
    raw = jnp.tile(jnp.array([0.0, 0.0, -0.5, 0.5, scale, scale]), (4, 1))
    values, slopes = jax.vmap(jax.value_and_grad(output.log_prob, 1))(jnp.arange(4.0), raw)
    assert jnp.isfinite(values).all() and jnp.isfinite(slopes).all()
    np.testing.assert_allclose(jnp.exp(values).sum(), 1, rtol=1e-5)
