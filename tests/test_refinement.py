"""Semi-amortized inference: steps from a bad encoder to the best posterior, against closed forms of a linear VAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dgm_jax.models.latent import refinement, vae
from dgm_jax.numerics import softplus_inverse

DIMS, LATENT, NOISE = 5, 3, 0.4
ORTHOGONAL = np.linalg.qr(np.random.default_rng(3).normal(size=(DIMS, LATENT)))[0].T * [[1.0], [2.0], [0.5]]
OBLIQUE = np.random.default_rng(4).normal(size=(LATENT, DIMS))
X = np.random.default_rng(5).normal(size=(7, DIMS)) * 2


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def linear(loadings, steps, rate=0.5, width=0.0, seed=0):
    """A VAE of x = z loadings + noise; its encoder knows nothing, and its standard deviations are about exp(width)."""
    options = {"output": "gaussian", "shared_scale": True, "refine": steps, "refine_rate": rate}
    model = vae.make(shape=(DIMS,), latent=LATENT, hidden=(), **options)
    rng = np.random.default_rng(seed)
    bias = np.concatenate([rng.normal(size=LATENT), np.full(LATENT, width)])
    params = {
        "encoder": {"Dense_0": {"kernel": jnp.asarray(0.3 * rng.normal(size=(DIMS, 2 * LATENT))), "bias": bias}},
        "decoder": {"Dense_0": {"kernel": jnp.asarray(loadings), "bias": jnp.zeros(DIMS)}},
        "offset": jnp.zeros(DIMS),
        "scale": softplus_inverse(jnp.asarray([NOISE - 1e-3])),
        "prior": {},
        "posterior": {},
    }
    return model, params, {"x": jnp.asarray(X)}


def exact(loadings):
    """Means [B, L] and precision [L, L] of p(z | x), and log p(x) [B]."""
    precision = np.eye(LATENT) + loadings @ loadings.T / NOISE**2
    mean = np.linalg.solve(precision, loadings @ X.T / NOISE**2).T
    covariance = loadings.T @ loadings + NOISE**2 * np.eye(DIMS)
    return mean, precision, scipy.stats.multivariate_normal(np.zeros(DIMS), covariance).logpdf(X)


def statistics(model, params, batch):
    """Means and standard deviations of q, from its density alone."""
    mean = np.asarray(model.encode(params, None, batch))
    steps = [np.asarray(model.log_posterior(params, jnp.asarray(mean + e), batch)) for e in np.eye(LATENT)]
    top = np.asarray(model.log_posterior(params, jnp.asarray(mean), batch))
    return mean, (2 * (top[:, None] - np.stack(steps, axis=1))) ** -0.5


def divergence(mean, scale, loadings):
    """KL(q | p(z | x)) of diagonal q [B]."""
    best, precision, _ = exact(loadings)
    off, kept = mean - best, np.diag(precision)
    square = np.einsum("bi,ij,bj->b", off, precision, off)
    log_det = np.linalg.slogdet(precision)[1] + 2 * np.log(scale).sum(1)
    return 0.5 * ((scale**2 * kept).sum(1) + square - LATENT - log_det)


@pytest.mark.parametrize("width", [-4.0, 0.0, 3.0])
def test_where_the_posterior_is_diagonal_the_steps_lead_to_it(width):
    """And then the bound is log p(x), whatever is drawn."""
    model, params, batch = linear(ORTHOGONAL, 400, 1.0, width)
    best, precision, log_prob = exact(ORTHOGONAL)
    mean, scale = statistics(model, params, batch)
    np.testing.assert_allclose(mean, best, atol=1e-6)
    np.testing.assert_allclose(scale, np.broadcast_to(np.diag(precision) ** -0.5, scale.shape), rtol=1e-6)
    z, log_q = model.draw(params, jax.random.key(0), batch)
    np.testing.assert_allclose(model.log_joint(params, z, batch) - log_q, log_prob, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("width, rate", [(-2.0, 1.0), (0.0, 0.5), (0.0, 1.0), (1.0, 1.0)])
def test_steps_close_the_gap_of_a_bad_encoder(width, rate):
    gaps = []
    for steps in (0, 1, 2, 5, 160):
        model, params, batch = linear(OBLIQUE, steps, rate, width)
        gaps.append(divergence(*statistics(model, params, batch), OBLIQUE))
    mean, precision, _ = exact(OBLIQUE)
    least = divergence(mean, np.broadcast_to(np.diag(precision) ** -0.5, mean.shape), OBLIQUE)  # of a diagonal q
    for gap in gaps[1:]:
        assert (gap < gaps[0]).all()
    assert (gaps[-1] >= least - 1e-9).all()
    assert ((gaps[-1] - least) < 0.02 * (gaps[0] - least)).all()


def test_the_bound_stays_one_and_is_of_the_density_that_is_drawn_from():
    model, params, batch = linear(OBLIQUE, 4)
    keys = jax.random.split(jax.random.key(1), 4000)

    def weights(key):
        z, log_q = model.draw(params, key, batch)
        return model.log_joint(params, z, batch) - log_q, log_q - model.log_posterior(params, z, batch)

    log_w, off = jax.jit(jax.vmap(weights))(keys)
    assert np.abs(off).max() < 1e-9
    error = np.asarray(log_w).std(0) / np.sqrt(len(keys))
    expected = exact(OBLIQUE)[2] - divergence(*statistics(model, params, batch), OBLIQUE)
    assert (np.abs(log_w.mean(0) - expected) < 4.5 * error).all()
    rates, distortion = jax.jit(jax.vmap(lambda key: model.rate_distortion(params, key, batch)))(keys)
    spread = np.asarray(distortion).std(0) / np.sqrt(len(keys))
    assert (np.abs(rates[0].sum(-1) + distortion.mean(0) + expected) < 4.5 * spread).all()


def test_an_example_is_refined_alone():
    model, params, batch = linear(OBLIQUE, 3)
    together = model.encode(params, None, batch)
    alone = model.encode(params, None, {"x": batch["x"][2:3]})
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-12)
    amortized, unmoved = (linear(OBLIQUE, steps, rate)[0] for steps, rate in ((0, 0.5), (3, 0.0)))
    np.testing.assert_allclose(unmoved.encode(params, None, batch), amortized.encode(params, None, batch), rtol=1e-12)
    assert np.abs(together - amortized.encode(params, None, batch)).max() > 0.1


@pytest.mark.slow
def test_gradients_pass_through_the_steps():
    model = vae.make(shape=(6,), latent=2, hidden=(5,), refine=3)
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.integers(0, 2, size=(4, 6)).astype(float))}
    params = model.init(jax.random.key(0), batch)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.5 * rng.normal(size=leaf.shape)), params)

    @jax.jit
    def loss(params):
        z, log_q = model.draw(params, jax.random.key(1), batch)
        return (log_q - model.log_joint(params, z, batch)).mean()

    slopes, step = jax.jit(jax.grad(loss))(params), 1e-5
    for part in ("encoder", "decoder", "offset"):
        way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params[part])
        ends = [
            float(loss({**params, part: jax.tree.map(lambda p, d, h=h: p + h * d, params[part], way)}))
            for h in (step, -step)
        ]
        claimed = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slopes[part], way)), strict=True))
        np.testing.assert_allclose(claimed, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_nodes_have_the_moments_of_the_normal_distribution():
    nodes = refinement.quadrature(400, 3)
    np.testing.assert_allclose(nodes.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose((nodes**2).mean(1), 1, rtol=1e-12)
    products = np.einsum("tsi,tsj->ij", nodes, nodes) / nodes[..., 0].size
    assert np.abs(products - np.eye(3)).max() < 0.15
