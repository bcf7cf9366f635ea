"""VQ-VAE: the quantizer, its straight-through gradient and its codebook against numpy; the model's levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from dgm_jax import api, runs
from dgm_jax.models.latent import vqvae
from dgm_jax.nets.quantizer import first_codebook, nearest, straight_through
from dgm_jax.objectives.quantization import Codebook, averaged, vector_quantization
from dgm_jax.training.learners import gradient, trainable
from dgm_jax.training.parallel import make_mesh, place, replicated
from dgm_jax.training.wrappers import DEVICES, over_devices
from dgm_jax.types import Model

D, CELLS, LATENT, K = 6, 4, 3, 5  # of the toy


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def toy():
    """Linear maps from x [B, D] to vectors [B, CELLS, LATENT] and back, with a normal likelihood."""

    def init(key, batch):
        keys = jax.random.split(key, 3)
        return {
            "encoder": jax.random.normal(keys[0], (D, CELLS * LATENT)),
            "decoder": jax.random.normal(keys[1], (CELLS * LATENT, D)),
            "buffers": {"codebook": {"only": 2 * jax.random.normal(keys[2], (K, LATENT))}},
        }

    def draw(params, key, batch):
        z = (batch["x"] @ params["encoder"]).reshape(-1, CELLS, LATENT)
        return {"only": z}, jnp.zeros(len(z))

    def log_joint(params, z, batch):
        e = straight_through(z["only"], params["buffers"]["codebook"]["only"])
        return -0.5 * ((batch["x"] - e.reshape(len(e), -1) @ params["decoder"]) ** 2).sum(-1)

    return Model(init, draw=draw, log_joint=log_joint)


def codes_of(z, e):
    """By looking at every code."""
    return np.array([min(range(len(e)), key=lambda k: ((v - e[k]) ** 2).sum()) for v in z])


def test_nearest_and_straight_through_are_numpy_s():
    rng = np.random.default_rng(0)
    z, e = rng.normal(size=(2, 3, LATENT)), rng.normal(size=(K, LATENT))
    code = codes_of(z.reshape(-1, LATENT), e)
    np.testing.assert_array_equal(nearest(jnp.asarray(z), jnp.asarray(e)).reshape(-1), code)
    far_z, far_e = (jnp.asarray(np.round(8 * a) + 50_000, jnp.float32) for a in (z, e))  # whole: float32 has them all
    code_far = codes_of(np.round(8 * z).reshape(-1, LATENT), np.round(8 * e))
    np.testing.assert_array_equal(nearest(far_z, far_e).reshape(-1), code_far)
    weights = rng.normal(size=z.shape)

    def value(z, e):
        return (jnp.sin(straight_through(z, e)) * weights).sum()

    found, to_z, to_e = (
        *jax.value_and_grad(value)(jnp.asarray(z), jnp.asarray(e)),
        jax.grad(value, 1)(z, jnp.asarray(e)),
    )
    chosen = e[code].reshape(z.shape)
    np.testing.assert_array_equal(straight_through(jnp.asarray(z), jnp.asarray(e)), chosen)  # to the bit
    np.testing.assert_allclose(found, (np.sin(chosen) * weights).sum(), rtol=1e-12)
    np.testing.assert_allclose(to_z, np.cos(chosen) * weights, rtol=1e-12)
    assert not np.any(to_e)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_are_numpy_s(masked):
    rng = np.random.default_rng(1)
    x, commitment = rng.normal(size=(7, D)), 0.7
    batch = {"x": jnp.asarray(x)} | ({"mask": jnp.asarray([1.0] * 4 + [0.0] * 3)} if masked else {})
    model = toy()
    params, loss = model.init(jax.random.key(0), batch), vector_quantization(model, commitment)
    (found, out), grads = jax.jit(jax.value_and_grad(loss.apply, has_aux=True))(params, (), jax.random.key(1), batch)

    w, v, e = (np.asarray(a) for a in (params["encoder"], params["decoder"], params["buffers"]["codebook"]["only"]))
    x = x[:4] if masked else x
    z = (x @ w).reshape(-1, LATENT)
    chosen = e[codes_of(z, e)]
    q = chosen.reshape(len(x), -1)
    error = q @ v - x
    distance = ((z - chosen) ** 2).sum(-1).reshape(len(x), CELLS).sum(-1)
    np.testing.assert_allclose(found, (0.5 * (error**2).sum(-1) + commitment * distance).mean(), rtol=1e-10)
    np.testing.assert_allclose(out.metrics["elbo"], 0.5 * (error**2).sum(-1).mean(), rtol=1e-10)
    np.testing.assert_allclose(out.metrics["commitment"], distance.mean(), rtol=1e-10)
    # what reaches the vectors: the decoder's gradient at the codes, unchanged, and the commitment's
    to_z = error @ v.T + 2 * commitment * (z - chosen).reshape(len(x), -1)
    np.testing.assert_allclose(grads["encoder"], x.T @ to_z / len(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads["decoder"], q.T @ error / len(x), rtol=1e-9, atol=1e-12)
    assert not np.any(grads["buffers"]["codebook"]["only"])


def test_codebook_is_the_running_averages_of_numpy():
    """Three steps of N, M and e = M / N, with padding, and no code that starts again."""
    rng = np.random.default_rng(2)
    vectors, decay = rng.normal(size=(K, LATENT)), 0.9
    found = Codebook(jnp.asarray(vectors), jnp.ones(K), jnp.asarray(vectors))
    used, total, step = np.ones(K), vectors.copy(), jax.jit(averaged)
    for t in range(3):
        z, mask = rng.normal(size=(8, 2, LATENT)), np.array([1.0] * 6 + [0.0] * 2)
        found, metrics = step(jax.random.key(t), found, jnp.asarray(z), jnp.asarray(mask), decay, 0.0)
        flat = z[:6].reshape(-1, LATENT)
        code = codes_of(flat, vectors)
        for k in range(K):
            used[k] = decay * used[k] + (1 - decay) * (code == k).sum()
            total[k] = decay * total[k] + (1 - decay) * flat[code == k].sum(0)
        vectors = total / used[:, None]
        np.testing.assert_allclose(found.used, used, rtol=1e-12)
        np.testing.assert_allclose(found.total, total, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.vectors, vectors, rtol=1e-12)
        share = np.bincount(code, minlength=K) / len(code)
        np.testing.assert_allclose(metrics["perplexity"], np.exp(scipy.stats.entropy(share)), rtol=1e-9)
        assert metrics["used"] == 1


def test_dead_codes_start_again_at_vectors_of_the_batch():
    rng = np.random.default_rng(3)
    vectors = np.concatenate([rng.normal(size=(2, LATENT)), np.full((3, LATENT), 100.0)])
    found = Codebook(jnp.asarray(vectors), jnp.ones(K), jnp.asarray(vectors))
    z, mask = rng.normal(size=(8, 2, LATENT)), np.array([1.0] * 4 + [0.0] * 4)
    z[4:] = np.nan  # padding
    step, alive, seen = jax.jit(averaged), [], []
    for t in range(60):
        found, metrics = step(jax.random.key(t), found, jnp.asarray(z), jnp.asarray(mask), 0.9, 0.2)
        alive.append(float(metrics["used"]))
        if alive[-1] < 1:
            seen.append(np.asarray(found.vectors[2:]))
    assert alive[0] == 1 and np.isclose(min(alive), 0.4)  # at first they are not known to be dead
    real = z[:4].reshape(-1, LATENT)
    nearest_real = np.sqrt(((seen[0][:, None] - real[None]) ** 2).sum(-1)).min(1)
    assert (nearest_real < 5 * 0.01 * real.std()).all()  # the jitter
    assert len(np.unique(seen[0], axis=0)) == 3
    assert metrics["perplexity"] > 3.5  # of 8 different vectors; 2 codes at the start
    np.testing.assert_allclose(found.total, found.used[:, None] * found.vectors, rtol=1e-9)


@pytest.mark.slow
def test_statistics_are_of_the_global_batch_whatever_its_parts():
    """The codebook, and which codes start again where, with micro-batches and devices under pmap."""
    rng, key, n = np.random.default_rng(4), jax.random.key(0), jax.device_count()
    batch = {"x": jnp.asarray(rng.normal(size=(16, D))), "mask": jnp.arange(16.0) < 11}
    loss, tx = vector_quantization(toy(), decay=0.5, revive=0.9), optax.sgd(1e-3)
    one, parts, over = (
        gradient(toy().init, loss, tx, micro, axis) for micro, axis in ((1, None), (n, None), (1, DEVICES))
    )
    start = jax.jit(one.init)(key, batch)
    results = []
    for learner, first in (
        (one, start),
        (parts, start),
        (over_devices(over, n), place(start, replicated(make_mesh({"data": -1})))),
    ):
        step, state, used = jax.jit(learner.step), first, []
        for _ in range(4):
            state, metrics = step(state, key, batch)
            used.append(float(metrics["used_only"]))
        assert min(used) < 1  # some did start again
        results.append((state, metrics))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), other, results[0])


def test_first_codebook_has_no_code_twice():
    z = jnp.zeros((4, 2, LATENT)).at[0].set(1.0)
    for codes in (3, 20):  # fewer than the vectors, and more
        e = np.asarray(jax.jit(first_codebook, static_argnums=2)(jax.random.key(0), z, codes))
        assert e.shape == (codes, LATENT) and len(np.unique(e, axis=0)) == codes


@functools.cache
def small(**options):
    """A model of two levels with rough parameters; its functions compiled, and a batch."""
    options = {"scales": (2, 2), "codes": 6, "latent": 3, "width": 8, "blocks": 1, "levels": 5} | options
    model = vqvae.make(shape=(8, 4, 2), **options)
    x = jnp.asarray(np.random.default_rng(5).integers(5, size=(5, 8, 4, 2)), float)
    params = jax.jit(model.init)(jax.random.key(0), {"x": x})
    rng = np.random.default_rng(6)
    rough = jax.tree.map(lambda p: np.asarray(p) + 0.3 * rng.normal(size=p.shape), trainable(params))
    compiled = {name: jax.jit(getattr(model, name)) for name in ("draw", "log_joint", "encode", "decode")}
    return model._replace(**compiled), params | rough, {"x": x}


@pytest.mark.slow
def test_codes_go_round():
    """A square error around the mean image of the codes, with uniform codes, is log_joint; of both levels' codes."""
    model, params, batch = small(output="gaussian", shared_scale=True)
    codes = model.encode(params, None, batch)
    assert {level: code.shape for level, code in codes.items()} == {"top": (5, 2, 1), "bottom": (5, 4, 2)}
    assert all(code.dtype == jnp.int32 and code.min() >= 0 and code.max() < 6 for code in codes.values())
    mean = np.asarray(model.decode(params, None, codes))
    width = 1e-3 + np.logaddexp(0, np.asarray(params["bias"])[:, 1])  # of each channel
    exact = scipy.stats.norm.logpdf(batch["x"], mean, width).sum((1, 2, 3)) - (2 + 8) * np.log(6)
    z, log_q = model.draw(params, None, batch)
    np.testing.assert_allclose(model.log_joint(params, z, batch) - log_q, exact, rtol=1e-9)
    for level in codes:  # both levels are read
        other = codes | {level: (codes[level] + 1) % 6}
        assert np.abs(np.asarray(model.decode(params, None, other)) - mean).max() > 1e-3
    drawn = model.prior(params, jax.random.key(1), 500)
    assert {level: code.shape[1:] for level, code in drawn.items()} == {"top": (2, 1), "bottom": (4, 2)}
    assert scipy.stats.chisquare(np.bincount(np.asarray(drawn["bottom"]).reshape(-1), minlength=6)).pvalue > 1e-3


@pytest.mark.slow
def test_a_warm_start_goes_on_from_the_codebook():
    """Its running averages are those of the codes that are given, not of the first draw."""
    with jax.enable_x64(False):
        run = runs.prepare(api.load_config("vqvae_digits:tiny", {"seeds": 2}))
        mesh = make_mesh({"data": -1})
        learner, feed = runs.build(run, mesh)[1], runs.make_feed(run, mesh)
        like = runs.abstract_state(run, learner, mesh)
        fresh = runs.fresh_state(learner, runs.run_key(run.config), feed, like)
        given = jax.tree.map(lambda x: x + 1, fresh.params)
        warm = runs.warm_state(run, mesh, given, feed(0), like)
    jax.tree.map(np.testing.assert_array_equal, warm.params, given)
    jax.tree.map(np.testing.assert_array_equal, warm.carry["total"], given["buffers"]["codebook"])
    assert jax.tree.structure(warm) == jax.tree.structure(fresh) and warm.step == 0


def test_the_bottom_is_encoded_given_the_top():
    model, params, batch = small()
    z, _ = model.draw(params, None, batch)
    moved = params | {"buffers": {"codebook": params["buffers"]["codebook"] | {"top": jnp.ones((6, 3))}}}
    other, _ = model.draw(moved, None, batch)
    np.testing.assert_array_equal(z["top"], other["top"])
    assert np.abs(np.asarray(z["bottom"] - other["bottom"])).max() > 1e-3


def test_bits_are_a_probability_of_levels():
    """Of one pixel, with all others held, the probabilities of all levels that have the same codes sum to one."""
    model, params, _ = small()
    x = jnp.zeros((5, 8, 4, 2)).at[:, 3, 2, 1].set(jnp.arange(5.0))
    z, _ = model.draw(params, None, {"x": x})
    held = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), z)
    log_p = model.log_joint(params, held, {"x": x})
    others = model.log_joint(params, held, {"x": x.at[:, 3, 2, 1].set(0.0)})
    ratio = np.asarray(log_p - others)  # p(level) / p(0)
    p_zero = np.exp(-scipy.special.logsumexp(ratio))
    assert 0 < p_zero < 1 and model.support == "levels"
    mean = float(model.decode(params, None, model.encode(params, None, {"x": x}))[0, 3, 2, 1])
    np.testing.assert_allclose(mean, (np.exp(ratio) * p_zero * np.arange(5)).sum(), rtol=1e-9)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"scales": (3,)}, "powers|2, 4, 8"),
        ({"scales": (2, 2, 2)}, "one or two"),
        ({"scales": (8,)}, "cannot be halved 3 times"),
        ({"output": "categorical", "shared_scale": True}, "has no scale"),
    ],
)
def test_what_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        small(**options)


def test_the_objective_wants_a_codebook():
    model = toy()
    params = model.init(jax.random.key(0), {"x": jnp.zeros((2, D))})
    del params["buffers"]
    with pytest.raises(TypeError, match="needs a model with params"):
        vector_quantization(model).init(params, jax.random.key(0), {})
