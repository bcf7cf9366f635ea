"""VAEs of several layers: densities against plain numpy, and what the layers are given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows
import scipy.special
import scipy.stats

from dgm_jax.models.latent import layered, top_down
from dgm_jax.verification import bounds, check, drawn
from dgm_jax.verification.space import Space

LATENT, HIDDEN, DIMS = (3, 2), ((5, 4), (4,)), 6
BITS = Space((3,), (0.0, 1.0), (0.0, 1.0), 2)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rough(tree, scale=0.6):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape)), tree)


def subject(inference):
    model = layered.make(shape=(DIMS,), latent=LATENT, hidden=HIDDEN, inference=inference)
    x = np.random.default_rng(0).integers(0, 2, size=(5, DIMS)).astype(float)
    batch = {"x": jnp.asarray(x)}
    return model, rough(model.init(jax.random.key(0), batch)), batch


def dense(tree, x):
    """The hidden layer below the last one, and the last one."""
    for i in range(len(tree) - 1):
        x = np.tanh(x @ np.asarray(tree[f"Dense_{i}"]["kernel"]) + np.asarray(tree[f"Dense_{i}"]["bias"]))
    last = tree[f"Dense_{len(tree) - 1}"]
    return x, x @ np.asarray(last["kernel"]) + np.asarray(last["bias"])


def normal(raw):
    loc, log_scale = np.split(raw, 2, axis=-1)
    return scipy.stats.norm(loc, np.exp(log_scale))


@pytest.mark.slow
@pytest.mark.parametrize("inference", layered.INFERENCE)
def test_layers_are_those_of_the_papers(inference):
    model, params, batch = subject(inference)
    x = np.asarray(batch["x"])
    (z1, z2), log_q = jax.tree.map(np.asarray, jax.jit(model.draw)(params, jax.random.key(2), batch))
    prior = normal(dense(params["down"][0], z2)[1])
    h, said = dense(params["up"][0], x)
    if inference == "bottom_up":
        factors = [normal(said), normal(dense(params["up"][1], z1)[1])]
    else:
        above = normal(dense(params["up"][1], h)[1])
        a, b = normal(said), prior
        precision = a.std() ** -2 + b.std() ** -2
        loc = (a.mean() * a.std() ** -2 + b.mean() * b.std() ** -2) / precision
        factors = [scipy.stats.norm(loc, precision**-0.5), above]
    expected = sum(factor.logpdf(z).sum(-1) for factor, z in zip(factors, (z1, z2), strict=True))
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)
    np.testing.assert_allclose(model.log_posterior(params, (z1, z2), batch), expected, rtol=1e-9)
    logits = dense(params["decoder"], z1)[1] + np.asarray(params["offset"])
    likelihood = (x * logits - np.logaddexp(0, logits)).sum(-1)
    joint = likelihood + prior.logpdf(z1).sum(-1) + scipy.stats.norm.logpdf(z2).sum(-1)
    np.testing.assert_allclose(model.log_joint(params, (z1, z2), batch), joint, rtol=1e-9)
    np.testing.assert_allclose(model.decode(params, None, (z1, z2)), scipy.special.expit(logits), rtol=1e-9)


@pytest.mark.slow
def test_layers_of_iwae_are_a_bound_with_labels():
    """The ladder is a row of the zoo."""
    model = layered.make(shape=BITS.shape, latent=(2, 1), hidden=((4,), (3,)), classes=2)
    given = model, BITS, 0
    made = [
        check("bound", bounds.bound, *given),
        check("rates", bounds.rates, *given),
        check("sample", drawn.sampled, *given),
    ]
    assert rows.passed(made) == {"bound", "rates", "sample"}


def test_layers_must_match():
    for options in ({"latent": (2,)}, {"latent": (2, 2), "hidden": ((3,), ())}, {"latent": (), "hidden": ()}):
        with pytest.raises(ValueError, match="an entry for each layer"):
            layered.make(shape=(4,), **options)
    with pytest.raises(ValueError, match="unknown inference 'up'"):
        layered.make(shape=(4,), inference="up")


@functools.cache
def maps(**options):
    """A model with its functions compiled, random parameters, and a batch."""
    model = top_down.make(shape=(4, 4, 1), blocks=(0, 2, 1), width=4, middle=3, latent=2, **options)
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.integers(0, 2, size=(3, 4, 4, 1)).astype(float))}
    if options:
        batch["cond"] = jnp.asarray([0, 1, 1])
    params = rough(jax.eval_shape(model.init, jax.random.key(0), batch), 0.4)
    names = "draw", "log_posterior", "log_joint", "encode", "decode"
    return model._replace(**{name: jax.jit(getattr(model, name)) for name in names}), params, batch


@pytest.mark.slow
def test_maps_go_from_coarse_to_fine():
    """A map a block; what one example's maps say, no other example hears."""
    model, params, batch = maps()
    z, log_q = jax.jit(model.draw)(params, jax.random.key(1), batch)
    assert [leaf.shape for leaf in z] == [(3, 1, 1, 1, 2), (3, 2, 2, 2, 2)]
    np.testing.assert_allclose(model.log_posterior(params, z, batch), log_q, rtol=1e-9)
    means = model.encode(params, None, batch)
    moved = model.decode(params, None, (means[0], means[1].at[0].add(1.0)))
    change = jnp.abs(moved - model.decode(params, None, means)).sum((1, 2, 3))
    assert (change > 1e-9).tolist() == [True, False, False]
    assert jax.tree.map(jnp.shape, means) == jax.tree.map(jnp.shape, z)


def test_a_latent_tells_the_pixels_below_it_apart():
    """Though the finest resolution has no latents of its own."""
    model, params, batch = maps()
    means = model.encode(params, None, batch)

    def logits(z):
        p = model.decode(params, None, z)[0, :2, :2, 0]  # the pixels below one place of the finest latents
        return jnp.log(p / (1 - p))

    change = logits((means[0], means[1].at[0, 0, 0, 0].add(1.0))) - logits(means)
    assert float(jnp.ptp(change)) > 1e-3


@pytest.mark.slow
def test_rates_of_maps_are_their_divergences():
    model, params, batch = maps()
    keys = jax.random.split(jax.random.key(4), 3000)

    def both(key):
        z, log_q = model.draw(params, key, batch)
        rates, distortion = model.rate_distortion(params, key, batch)
        return log_q - model.log_joint(params, z, batch), rates.sum(-1) + distortion, rates

    draws, sums, rates = jax.jit(lambda keys: jax.lax.map(both, keys))(keys)
    assert rates.shape[-1] == 3 and bool((rates >= 0).all())
    gap = np.asarray(draws - sums)  # of the same draws: only the rates' noise is left
    assert (np.abs(gap.mean(0)) < 4.5 * gap.std(0) / np.sqrt(len(keys))).all()


@pytest.mark.slow
def test_labels_reach_the_prior_and_the_posterior_of_maps():
    model, params, batch = maps(classes=2)
    z, _ = model.draw(params, jax.random.key(1), batch)
    other = {**batch, "cond": batch["cond"].at[0].set(1)}
    for f in (model.log_joint, model.log_posterior):
        change = jnp.abs(f(params, z, batch) - f(params, z, other))
        assert (change > 1e-9).tolist() == [True, False, False]


@pytest.mark.parametrize("blocks", [(1, 1, 0), ()])
def test_the_coarsest_maps_have_latents(blocks):
    with pytest.raises(ValueError, match="the coarsest resolution"):
        top_down.make(shape=(8, 8, 1), blocks=blocks)
