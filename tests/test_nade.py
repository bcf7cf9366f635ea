"""NADE, RNADE and orderless NADE against the published equations in numpy, enumeration, and full passes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from enumeration import assert_drawn_from, states

from dgm_jax.models.autoregressive import deep_nade, nade

NADES = {
    "plain": {"shape": (2, 4, 1), "hidden": 12},
    "blocks": {"shape": (8,), "hidden": 12, "block": 3, "random_order": True},
    "classes": {"shape": (8,), "hidden": 12, "classes": 3},
    "vectors": {"shape": (8,), "hidden": 12, "cond_size": 2},
    "levels": {"shape": (8,), "hidden": 12, "output": "categorical", "levels": 2, "rescale": True},
}
ORDERLESS = {
    "one": {"shape": (2, 4, 1), "hidden": (12,)},
    "deep": {"shape": (8,), "hidden": (12, 10), "orders": 3},
    "classes": {"shape": (8,), "hidden": (12,), "classes": 3},
    "vectors": {"shape": (8,), "hidden": (12, 10), "cond_size": 2, "orders": 2},
}
MODELS = {f"nade_{name}": (nade.make, options) for name, options in NADES.items()}
MODELS |= {f"orderless_{name}": (deep_nade.make, options) for name, options in ORDERLESS.items()}


def marked(names):
    """As parameters of a test; two are in the fast subset."""
    quick = ("nade_blocks", "orderless_deep")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def condition(options, n):
    if size := options.get("cond_size"):
        return jnp.tile(jnp.linspace(-1, 1, size), (n, 1))
    return jnp.full(n, 2) if options.get("classes") else None


def one_hot(options):
    """The condition as the equations have it."""
    cond = condition(options, 1)
    return None if cond is None else (np.eye(3)[2] if options.get("classes") else np.asarray(cond)[0])


def build(make, options, seed=0):
    """A model with random parameters, and all its events."""
    model, x = make(**options), jnp.asarray(states(np.prod(options["shape"]))).reshape(-1, *options["shape"])
    batch = {"x": x, "cond": condition(options, len(x))}
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes), batch


def log_prob(model, params, batch):
    return np.asarray(jax.jit(lambda params, batch: model.log_prob(params, None, batch))(params, batch))


def numpy_nade(params, x, order, c=None, act=scipy.special.expit):
    """The recursion as published, a dimension at a time: what the output of every dimension is given, [D, size]."""
    p = jax.tree.map(np.asarray, params)
    a = p["input"]["bias"] + (0 if c is None else c @ p["cond"])
    raw = np.empty(p["output"]["bias"].shape)
    for d in order:
        h = act(a * p["rescale"][d] if "rescale" in p else a)
        raw[d] = h @ p["output"]["kernel"][d] + p["output"]["bias"][d]
        a = a + x[d] * p["input"]["kernel"][d]
    return raw


def numpy_orderless(params, x, order, c=None):
    """One pass of the net a dimension, given those before it in the order."""
    p = jax.tree.map(np.asarray, params)
    raw, observed = np.empty(len(order)), np.zeros(len(order))
    for d in order:
        h = np.concatenate([x * observed, observed])
        for i in range(sum(name.startswith("hidden") for name in p)):
            shift = p[f"hidden_{i}"]["bias"] + (0 if c is None else c @ p[f"cond_hidden_{i}"]["kernel"])
            h = np.maximum(h @ p[f"hidden_{i}"]["kernel"] + shift, 0)
        raw[d] = h @ p["output"]["kernel"][:, d] + p["output"]["bias"][d]
        observed[d] = 1
    return raw


def orders_of(name):
    """The orders of a model, from the seed that it documents."""
    kind, options = name.partition("_")[0], MODELS[name][1]
    rng = np.random.default_rng(0)
    if kind == "orderless":
        return [rng.permutation(8) for _ in range(options.get("orders", 1))]
    return [rng.permutation(8) if options.get("random_order") else np.arange(8)]


def numpy_log_probs(name, params, events):
    """Under each order, [orders, B]."""
    options = MODELS[name][1]
    found = np.zeros((len(orders_of(name)), len(events)))
    for (i, order), (j, x) in itertools.product(enumerate(orders_of(name)), enumerate(events)):
        if name.startswith("orderless"):
            raw = numpy_orderless(params, x, order, one_hot(options))
        elif options.get("output") == "categorical":
            raw = numpy_nade(params, 2 * x - 1, order, one_hot(options))
            raw = raw[:, 1] - raw[:, 0]
        else:
            raw = numpy_nade(params, x, order, one_hot(options))[:, 0]
        found[i, j] = (x * raw - np.logaddexp(0, raw)).sum()
    return found


@pytest.mark.parametrize("name", marked(MODELS))
def test_it_is_the_published_equations_and_sums_to_one(name):
    model, params, batch = build(*MODELS[name])
    values = log_prob(model, params, batch)
    each = numpy_log_probs(name, params, states()[::7])
    np.testing.assert_allclose(values[::7], scipy.special.logsumexp(each, axis=0) - np.log(len(each)), atol=1e-9)
    np.testing.assert_allclose(scipy.special.logsumexp(values), 0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["gaussian", "laplace"])
def test_rnade_is_the_published_equations(output):
    options = {"shape": (5,), "hidden": 7, "output": output, "components": 3, "rescale": True, "activation": "relu"}
    model, rng = nade.make(**options), np.random.default_rng(1)
    batch = {"x": jnp.asarray(rng.normal(size=(4, 5)))}
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), model.init(jax.random.key(0), batch))
    expected = []
    for x in np.asarray(batch["x"]):
        raw = numpy_nade(params, x, np.arange(5), act=lambda a: np.maximum(a, 0))
        logits, loc, width = np.split(raw, 3, axis=-1)
        density = {"gaussian": scipy.stats.norm, "laplace": scipy.stats.laplace}[output]
        each = density.logpdf(x[:, None], loc, 1e-3 + np.log1p(np.exp(width)))
        expected.append(scipy.special.logsumexp(scipy.special.log_softmax(logits, axis=-1) + each, axis=-1))
    np.testing.assert_allclose(jax.jit(model.log_conditionals)(params, None, batch), expected, atol=1e-9)


@pytest.mark.parametrize("name", marked(["nade_plain", "nade_blocks", "orderless_one"]))
def test_a_dimension_depends_on_exactly_the_earlier_ones(name):
    model, params, _ = build(*MODELS[name])
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, *MODELS[name][1]["shape"])))
    jacobian = jax.jit(jax.jacrev(lambda x: model.log_conditionals(params, None, {"x": x})))(x)
    places = np.argsort(orders_of(name)[0])
    off_diagonal = ~np.eye(8, dtype=bool)  # log p(x_d | ...) is linear in x_d itself
    depends, earlier = np.asarray(jacobian).reshape(8, 8) != 0, places[None, :] < places[:, None]
    np.testing.assert_array_equal(depends[off_diagonal], earlier[off_diagonal])


@pytest.mark.parametrize("name", marked(MODELS))
def test_samples_are_those_of_full_passes(name):
    (make, options), temperature = MODELS[name], 0.7
    model, params, _ = build(make, options)
    key, n, cond = jax.random.key(3), 4, condition(options, 4)
    samples = jax.jit(model.sample, static_argnums=2)(params, key, n, cond, temperature)
    expected = np.zeros((n, 8))
    for x, one in zip(expected, jax.random.split(key, n), strict=True):
        order = orders_of(name)[0]
        if name.startswith("orderless"):
            order_key, one = jax.random.split(one)
            order = orders_of(name)[int(jax.random.randint(order_key, (), 0, options.get("orders", 1)))]
        for d, value_key in zip(order, jax.random.split(one, 8), strict=True):
            if name.startswith("orderless"):
                raw = numpy_orderless(params, x, order, one_hot(options))[d]
            elif options.get("output") == "categorical":
                logits = numpy_nade(params, 2 * x - 1, order, one_hot(options))[d]
                x[d] = jax.random.categorical(value_key, jnp.asarray(logits / temperature))
                continue
            else:
                raw = numpy_nade(params, x, order, one_hot(options))[d, 0]
            x[d] = jax.random.bernoulli(value_key, scipy.special.expit(raw / temperature))
    np.testing.assert_array_equal(samples, expected.reshape(samples.shape))


@pytest.mark.parametrize("name", marked(["nade_blocks", "nade_levels", "orderless_deep"]))
def test_samples_have_their_probabilities(name):
    model, params, _ = build(*MODELS[name])
    samples = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(0), 10000)
    assert_drawn_from(samples, np.exp(numpy_log_probs(name, params, states())).mean(0))


def test_orderless_completions_are_the_exact_conditionals_of_any_mask():
    model, params, _ = build(*MODELS["orderless_one"])
    observed = np.array([0, 1, 1, 0, 1, 0, 0, 1.0])
    given = states()[0b01101001]
    (order,) = orders_of("orderless_one")
    order = np.concatenate([order[observed[order] == 1], order[observed[order] == 0]])
    agrees = np.all(states()[:, observed == 1] == given[observed == 1], axis=1)
    probabilities = np.zeros(256)
    for i in np.flatnonzero(agrees):
        x = states()[i]
        raw = numpy_orderless(params, x, order)
        probabilities[i] = np.exp((x * raw - np.logaddexp(0, raw))[observed == 0].sum())
    assert np.isclose(probabilities.sum(), 1)
    shape = (10000, *MODELS["orderless_one"][1]["shape"])
    batch = {
        name: jnp.asarray(np.tile(value, (10000, 1)).reshape(shape))
        for name, value in (("x", given), ("observed", observed))
    }
    assert_drawn_from(jax.jit(model.complete)(params, jax.random.key(1), batch), probabilities)


def test_the_orderless_estimate_is_unbiased():
    model, params, _ = build(deep_nade.make, {"shape": (3,), "hidden": (6,)})
    x = np.array([1.0, 0.0, 1.0])
    orders = list(itertools.permutations(range(3)))
    each = [numpy_orderless(params, x, np.array(order)) for order in orders]
    exact = np.mean([(x * raw - np.logaddexp(0, raw)).sum() for raw in each])
    batch = {"x": jnp.tile(x, (400_000, 1))}
    values = np.asarray(jax.jit(model.log_prob)(params, jax.random.key(0), batch))
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values))
    assert values.std() / np.sqrt(len(values)) < 0.01 * abs(exact)


def test_dropout_is_for_training_alone():
    options = {"shape": (3,), "hidden": (8, 8)}
    (plain, params, batch), (model, _, _) = (build(deep_nade.make, options | {"dropout": p}) for p in (0.0, 0.5))
    log_prob = [f.log_prob(params, None, batch) for f in (plain, model)]
    np.testing.assert_array_equal(*log_prob)
    estimates = [f.log_prob(params, jax.random.key(0), batch) for f in (plain, model)]
    assert bool((jnp.abs(estimates[0] - estimates[1]) > 1e-6).any())


def test_a_condition_of_the_wrong_form_is_refused():
    model, params, batch = build(*MODELS["nade_vectors"])
    with pytest.raises(ValueError, match=r"vectors of 2 numbers.*there is none"):
        model.log_prob(params, None, {"x": batch["x"]})
    with pytest.raises(ValueError, match="on labels or on vectors"):
        both = nade.make(shape=(8,), classes=2, cond_size=2)
        both.init(jax.random.key(0), batch)
