"""PixelCNN++: the mixture of whole pixels against the paper's equations, the net and its samples at all resolutions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from enumeration import assert_drawn_from, states
from jax.test_util import check_grads

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import pixelcnnpp

pytestmark = pytest.mark.slow

SMALL = {"features": 4, "blocks": 1, "components": 3}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def every_pixel(levels, channels=3):
    return np.array(list(itertools.product(range(levels), repeat=channels)), float)


def log_conditionals(x, raw, components, levels):
    output = outputs.logistic(components, levels)
    channels = outputs.coupled_logistic(x.shape[-1], components, levels).channels
    return output.log_prob(x, channels(raw, output.read(x)))


def log_prob_of_the_paper(x, raw, components, levels):
    """Equations 2 and 3 of Salimans et al. for one colour pixel x [3], by differences of sigmoids."""

    def between(low, high):  # mass of the standard logistic, on the side where sigmoids are small
        expit = scipy.special.expit
        return np.where(low > 0, expit(-low) - expit(-high), expit(high) - expit(low))

    k, unit = components, 2 * x / (levels - 1) - 1
    logits, loc, log_scale, strength = np.split(raw, [k, 4 * k, 7 * k])
    red, green, blue = loc.reshape(3, k)
    alpha, beta, gamma = np.tanh(strength.reshape(3, k))
    means = red, green + alpha * unit[0], blue + beta * unit[0] + gamma * unit[1]
    mass = scipy.special.softmax(logits)
    for c, (mean, log_s) in enumerate(zip(means, log_scale.reshape(3, k), strict=True)):
        s, half = np.exp(np.maximum(log_s, -7)), 1 / (levels - 1)
        low = -np.inf if x[c] == 0 else (unit[c] - half - mean) / s
        high = np.inf if x[c] == levels - 1 else (unit[c] + half - mean) / s
        mass = mass * between(low, high)
    return np.log(mass.sum())


def test_the_mixture_is_that_of_the_paper():
    rng, k, levels = np.random.default_rng(0), 5, 256
    x = rng.integers(levels, size=(200, 3)).astype(float)
    x[:30] = rng.choice([0, 255], size=(30, 3))
    raw = rng.normal(size=(200, 10 * k)) - 0.5
    log_prob = jax.jit(lambda raw: log_conditionals(jnp.asarray(x), raw, k, levels).sum(-1))
    expected = [log_prob_of_the_paper(*one, k, levels) for one in zip(x, raw, strict=True)]
    np.testing.assert_allclose(log_prob(raw), expected, atol=1e-9)
    check_grads(log_prob, (raw,), 1, ["rev"])


@pytest.mark.parametrize("channels, levels", [(3, 8), (2, 17), (1, 256)])
def test_every_channel_is_normalised_given_those_before(channels, levels):
    x = every_pixel(levels, channels)
    rng = np.random.default_rng(1)
    coupled = outputs.coupled_logistic(channels, 4, levels)
    assert coupled.size == 4 * {1: 3, 2: 6, 3: 10}[channels]
    found = jax.jit(lambda raw: log_conditionals(jnp.asarray(x), raw, 4, levels))
    for spread in (0.5, 2.0, 10.0):
        raw = jnp.broadcast_to(spread * rng.normal(size=coupled.size), (len(x), coupled.size))
        log_p = np.asarray(found(raw))
        np.testing.assert_allclose(np.exp(log_p.sum(-1)).sum(), 1, atol=1e-9)
        table = np.exp(log_p).reshape(*[levels] * channels, channels)
        for c in range(channels):  # the same for all values of what comes later
            first = table[(*[slice(None)] * (c + 1), *[0] * (channels - c - 1), c)]
            np.testing.assert_allclose(first.sum(-1), 1, atol=1e-9)
            np.testing.assert_array_equal(np.ptp(table[..., c].reshape(levels ** (c + 1), -1), axis=1), 0)


def test_the_mixture_at_extremes():
    x = jnp.asarray([[0, 0, 0], [255, 255, 255], [0, 0, 128], [0, 255, 0], [255, 0, 7]], jnp.float32)
    value_and_grad = jax.jit(jax.value_and_grad(lambda raw: log_conditionals(x, raw, 3, 256).sum()))
    for log_scale in (-30.0, -7.0, 0.0, 10.0):
        for loc in (-50.0, -1.0, 0.0, 3.0):
            parts = [jnp.array([1e3, 0.0, -1e3]), jnp.full(9, loc), jnp.full(9, log_scale), jnp.full(9, 20.0)]
            raw = jnp.broadcast_to(jnp.concatenate(parts), (len(x), 30)).astype(jnp.float32)
            value, grads = value_and_grad(raw)
            assert jnp.isfinite(value) and value <= 0
            assert jnp.all(jnp.isfinite(grads))


def test_it_starts_as_the_mixtures_of_the_channels():
    rng = np.random.default_rng(2)
    output, coupled = outputs.logistic(4, 16), outputs.coupled_logistic(3, 4, 16)
    fitted = output.fit(jnp.asarray(rng.integers(16, size=(50, 3)), float), None)
    raw = coupled.fit(fitted)
    x = jnp.zeros(3)  # no evidence of a component: the earlier channels are not used
    np.testing.assert_allclose(coupled.channels(raw, x)[0], fitted[0])
    np.testing.assert_allclose(coupled.channels(raw, x)[:, 4:], fitted[:, 4:])


@functools.cache
def build(shape, stages, levels, **options):
    """A model with random parameters, and what gives the outputs of all channels by a full pass of its net."""
    given = SMALL | options
    model = pixelcnnpp.make(shape=shape, stages=stages, levels=levels, **given)
    batch = {"x": jnp.zeros((2, *shape)), "cond": condition(options, 2)}
    with jax.enable_x64(True):
        shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            scale = 1.5 / np.sqrt(np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.5
            return jnp.asarray(scale * rng.normal(size=leaf.shape))

        params = jax.tree_util.tree_map_with_path(draw, shapes)
    output = outputs.logistic(given["components"], levels)
    coupled = outputs.coupled_logistic(shape[-1], given["components"], levels)
    net = pixelcnnpp.Network(coupled.size, given["features"], given["blocks"], stages, 0.0)

    def outputs_of(x, c):
        read = output.read(x)
        return coupled.channels(net.apply({"params": params}, read, c), read)

    return model, params, output, jax.jit(outputs_of)


def condition(options, n, label=1):
    if size := options.get("cond_size"):
        return jnp.tile(jnp.linspace(-1, label, size), (n, 1))
    return jnp.full(n, label) if options.get("classes") else None


@functools.cache
def conditionals_of(model):
    return jax.jit(lambda params, x, cond: model.log_conditionals(params, None, {"x": x, "cond": cond}))


def test_probabilities_sum_to_one_and_samples_have_them():
    model, params, *_ = build((2, 4, 1), 2, 2)
    x = jnp.asarray(states()).reshape(-1, 2, 4, 1)
    log_probs = np.asarray(conditionals_of(model)(params, x, None).sum((1, 2, 3)))
    np.testing.assert_allclose(scipy.special.logsumexp(log_probs), 0, atol=1e-9)
    assert_drawn_from(jax.jit(model.sample, static_argnums=2)(params, jax.random.key(0), 10_000), np.exp(log_probs))


def test_samples_in_colour_have_their_probabilities():
    model, params, *_ = build((1, 2, 3), 1, 4)
    x = jnp.asarray(every_pixel(4, 6)).reshape(-1, 1, 2, 3)
    log_probs = np.asarray(conditionals_of(model)(params, x, None).sum((1, 2, 3)))
    np.testing.assert_allclose(scipy.special.logsumexp(log_probs), 0, atol=1e-9)
    samples = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(0), 10_000)
    assert_drawn_from(samples, np.exp(log_probs), base=4)


@pytest.mark.parametrize(
    "shape, stages, options",
    [
        ((4, 8, 3), 3, {"blocks": 2}),
        ((2, 6, 1), 2, {"classes": 3}),
        ((3, 5, 1), 1, {"cond_size": 2}),
    ],
    ids=["colour", "classes", "vectors"],
)
def test_samples_are_those_of_full_passes(shape, stages, options):
    n, temperature = 4, 0.8
    model, params, output, outputs_of = build(shape, stages, 5, **options)
    cond = condition(options, n)
    vectors = jax.nn.one_hot(cond, 3, dtype=float) if "classes" in options else cond
    found = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(1), n, cond, temperature)
    keys, x = jax.random.split(jax.random.key(1), shape), jnp.zeros((n, *shape))
    for d in itertools.product(*map(range, shape)):
        x = x.at[:, *d].set(output.sample(keys[d], outputs_of(x, vectors)[:, *d], temperature))
    np.testing.assert_array_equal(found, x)
    assert len(np.unique(found)) > 2
    if cond is not None:
        one, other = (conditionals_of(model)(params, x, condition(options, n, label)) for label in (0, 2))
        assert jnp.all(jnp.any(one != other, axis=0))  # a condition reaches every pixel


@pytest.mark.parametrize("shape, stages", [((3, 4, 3), 1), ((4, 4, 1), 3)])
def test_a_pixel_sees_all_values_before_it_and_no_other(shape, stages):
    model, params, *_ = build(shape, stages, 5)
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 3, size=(1, *shape)))
    jacobian = jax.jit(jax.jacrev(lambda x: model.log_conditionals(params, None, {"x": x})))(x)
    sees = np.asarray(jacobian).reshape(np.prod(shape), -1) != 0
    np.testing.assert_array_equal(sees, np.tril(np.ones_like(sees)))


def test_completions_keep_what_is_given():
    shape, n = (4, 4, 3), 5
    model, params, *_ = build(shape, 2, 5)
    x = jnp.asarray(np.random.default_rng(0).integers(5, size=(n, *shape)), float)
    upper = jnp.broadcast_to((jnp.arange(4) < 2)[None, :, None, None], x.shape).astype(float)
    complete = jax.jit(model.complete)
    found = complete(params, jax.random.key(2), {"x": x, "observed": upper})
    np.testing.assert_array_equal(jnp.where(upper == 1, found, 0), jnp.where(upper == 1, x, 0))
    nothing = complete(params, jax.random.key(2), {"x": x, "observed": jnp.zeros_like(x)})
    np.testing.assert_array_equal(nothing, jax.jit(model.sample, static_argnums=2)(params, jax.random.key(2), n))


def test_dropout_needs_a_key():
    model, params, *_ = build((2, 2, 1), 1, 5, dropout=0.5)
    log_prob, batch = jax.jit(model.log_prob), {"x": jnp.ones((3, 2, 2, 1))}
    whole, one, other = (log_prob(params, key, batch) for key in (None, *jax.random.split(jax.random.key(0))))
    np.testing.assert_allclose(whole, jnp.full(3, whole[0]))
    assert jnp.all(one != whole) and jnp.all(one != other)


def test_bfloat16_is_close_and_leaves_the_likelihood_alone():
    model, params, *_ = build((4, 4, 3), 1, 256)
    half, *_ = build((4, 4, 3), 1, 256, bf16=True)
    params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    params["head"]["bias"] = params["head"]["bias"].astype(jnp.bfloat16).astype(float)  # so that it is not rounded
    x = jnp.asarray(np.random.default_rng(0).integers(256, size=(8, 4, 4, 3)), float)
    exact, near = (jax.jit(m.log_conditionals)(params, None, {"x": x}) for m in (model, half))
    np.testing.assert_array_equal(near, exact)
    params["head"]["kernel"] = jnp.full_like(params["head"]["kernel"], 0.01)
    exact, near = (jax.jit(m.log_conditionals)(params, None, {"x": x}) for m in (model, half))
    assert near.dtype == exact.dtype and 0 < jnp.abs(near - exact).mean() < 0.05
