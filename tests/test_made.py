"""MADE against its definition, enumeration, and full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from enumeration import assert_drawn_from, states

from dgm_jax.models.autoregressive import made
from dgm_jax.nets.masked import made_degrees

CASES = {
    "plain": {"shape": (2, 4, 1), "hidden": (32,)},
    "deep": {"shape": (2, 4, 1), "hidden": (24, 24), "direct": True, "random_order": True},
    "belief_network": {"shape": (8,), "hidden": ()},
    "classes": {"shape": (8,), "hidden": (16,), "classes": 3, "dropout": 0.5},
    "vectors": {"shape": (8,), "hidden": (16,), "cond_size": 2},
    "masks": {"shape": (8,), "hidden": (16,), "masks": 3},
    "orders": {"shape": (8,), "hidden": (16,), "masks": 3, "random_order": True},
    "deep_orders": {"shape": (8,), "hidden": (16, 12), "masks": 3, "random_order": True, "direct": True},
}


def marked(names):
    """As parameters of a test; two are in the fast subset."""
    return [name if name in ("plain", "orders") else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def conditions(name, n, label=2):
    """The label n times; as a vector in the case of vectors."""
    if CASES[name].get("cond_size"):
        return jnp.tile(jnp.asarray([label, -1.0]), (n, 1))
    return jnp.full(n, label)


def events(name, x, label=2):
    x = jnp.asarray(x).reshape(-1, *CASES[name]["shape"])
    return {"x": x, "cond": conditions(name, len(x), label)}


def build(name, **changes):
    """A model with random parameters."""
    model = made.make(**CASES[name] | changes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), events(name, states()))
    rng = np.random.default_rng(len(name))
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)


def degrees(name):
    """Of each mask, from the seed that the model documents."""
    options, rng = CASES[name], np.random.default_rng(0)
    natural = not options.get("random_order", False)
    return [made_degrees(rng, 8, options["hidden"], natural) for _ in range(options.get("masks", 1))]


def numpy_logits(name, params, x, mask=0, label=2):
    """By the definition of the paper, each connection that the masks forbid cut on its own."""
    params = jax.tree.map(np.asarray, params)
    places, *hidden = degrees(name)[mask]

    def layer(h, layer_name, below, above, strict):
        kernel = params[layer_name]["kernel"].copy()
        for i, j in np.ndindex(kernel.shape):
            if (below[i] >= above[j]) if strict else (below[i] > above[j]):
                kernel[i, j] = 0
        bias = params[layer_name].get("bias", 0)
        if "cond_" + layer_name in params:
            vector = np.asarray(conditions(name, 1, label))[0] if name == "vectors" else np.eye(3)[label]
            bias = bias + vector @ params["cond_" + layer_name]["kernel"]
        return h @ kernel + bias

    h, below = x, places
    for i, above in enumerate(hidden):
        h, below = np.maximum(layer(h, f"hidden_{i}", below, above, False), 0), above
    logits = layer(h, "output", below, places, True)
    return logits + layer(x, "direct", places, places, True) if "direct" in params else logits


def numpy_log_probs(name, params, x):
    """Under each mask, [masks, B]."""
    logits = np.stack([numpy_logits(name, params, x, mask) for mask in range(CASES[name].get("masks", 1))])
    return (x * logits - np.logaddexp(0, logits)).sum(-1)


@pytest.mark.parametrize("name", marked(CASES))
def test_it_is_its_definition_and_sums_to_one(name):
    model, params = build(name)
    log_prob = jax.jit(model.log_prob)(params, None, events(name, states()))
    each = numpy_log_probs(name, params, states())
    np.testing.assert_allclose(log_prob, scipy.special.logsumexp(each, axis=0) - np.log(len(each)), atol=1e-9)
    np.testing.assert_allclose(scipy.special.logsumexp(log_prob), 0, atol=1e-9)


@pytest.mark.parametrize("name", marked(["plain", "deep", "belief_network", "classes"]))
def test_conditionals_are_those_of_the_joint(name):
    model, params = build(name)
    batch = events(name, states())
    joint = np.asarray(jax.jit(model.log_prob)(params, None, batch)).reshape((2,) * 8)
    order = np.argsort(degrees(name)[0][0])
    expected, before = np.empty((256, 8)), np.zeros(256)
    for i, d in enumerate(order):
        marginal = scipy.special.logsumexp(joint, axis=tuple(order[i + 1 :]), keepdims=True)
        upto = np.broadcast_to(marginal, joint.shape).reshape(-1)
        expected[:, d], before = upto - before, upto
    conditionals = jax.jit(model.log_conditionals)(params, None, batch)
    assert conditionals.shape == batch["x"].shape
    np.testing.assert_allclose(conditionals.reshape(256, 8), expected, atol=1e-9)


@pytest.mark.parametrize("name", marked(["plain", "deep", "belief_network"]))
def test_a_dimension_depends_on_exactly_the_earlier_ones(name):
    model, params = build(name)
    batch = events(name, np.random.default_rng(0).uniform(size=(1, 8)))
    jacobian = jax.jit(jax.jacrev(lambda x: model.log_conditionals(params, None, batch | {"x": x})))(batch["x"])
    places = degrees(name)[0][0]
    off_diagonal = ~np.eye(8, dtype=bool)  # log p(x_d | ...) is linear in x_d itself
    depends, earlier = np.asarray(jacobian).reshape(8, 8) != 0, places[None, :] < places[:, None]
    np.testing.assert_array_equal(depends[off_diagonal], earlier[off_diagonal])


@pytest.mark.parametrize("name", marked(["masks", "orders", "deep_orders"]))
def test_a_key_draws_one_mask_and_moves_its_weights_only(name):
    model, params = build(name)
    x = states()[::5]
    each = numpy_log_probs(name, params, x)
    step = jax.value_and_grad(lambda params, key: model.log_prob(params, key, events(name, x)).sum())
    values, grads = jax.jit(jax.vmap(step, (None, 0)))(params, jax.random.split(jax.random.key(0), 60))
    found = np.abs(np.asarray(values)[:, None] - each.sum(-1)) < 1e-6
    assert np.all(found.sum(1) == 1)
    assert scipy.stats.chisquare(found.sum(0)).pvalue > 1e-3
    union = jax.jit(jax.grad(lambda params: model.log_prob(params, None, events(name, x)).sum()))(params)
    for mask in range(3):
        places, *hidden = degrees(name)[mask]
        moved = jax.tree.map(lambda g: np.asarray(g != 0)[found[:, mask]].any(0), grads)
        first, last = moved["hidden_0"]["kernel"], moved["output"]["kernel"]
        assert not first[places[:, None] > hidden[0][None, :]].any()
        assert not last[hidden[-1][:, None] >= places[None, :]].any()
        # the mixture uses weights that this mask cuts: none has cut them for the others
        assert 0 < first.sum() < (union["hidden_0"]["kernel"] != 0).sum()
        assert 0 < last.sum() < (union["output"]["kernel"] != 0).sum()


@pytest.mark.parametrize("name", marked(CASES))
def test_samples_are_those_of_full_forward_passes(name):
    model, params = build(name)
    key, n, label, temperature = jax.random.key(3), 4, 1, 0.7
    cond = conditions(name, n, label) if {"classes", "cond_size"} & CASES[name].keys() else None
    samples = jax.jit(model.sample, static_argnums=2)(params, key, n, cond, temperature)
    expected = np.zeros((n, 8))
    for x, one in zip(expected, jax.random.split(key, n), strict=True):
        mask_key, one = jax.random.split(one)
        masks = CASES[name].get("masks", 1)
        mask = int(jax.random.randint(mask_key, (), 0, masks)) if masks > 1 else 0
        order = np.argsort(degrees(name)[mask][0])
        for d, pixel_key in zip(order, jax.random.split(one, 8), strict=True):
            probability = scipy.special.expit(numpy_logits(name, params, x, mask, label)[d] / temperature)
            x[d] = jax.random.bernoulli(pixel_key, probability)
    np.testing.assert_array_equal(samples, expected.reshape(samples.shape))


@pytest.mark.parametrize("name", marked(["plain", "deep_orders"]))
def test_samples_have_their_probabilities(name):
    model, params = build(name)
    samples = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(0), 10000)
    assert_drawn_from(samples, np.exp(numpy_log_probs(name, params, states())).mean(0))


def test_completions_are_given_all_that_comes_before():
    name = "deep"
    model, params = build(name)
    conditionals = np.asarray(jax.jit(model.log_conditionals)(params, None, events(name, states()))).reshape(256, 8)
    given, complete = states()[0b01101001], jax.jit(model.complete)
    first, some = degrees(name)[0][0] < 4, np.arange(8) >= 5
    for observed in (first, some):
        batch = events(name, np.tile(given, (10000, 1)))
        batch["observed"] = jnp.broadcast_to(observed.astype(float), (10000, 8)).reshape(batch["x"].shape)
        agrees = np.all(states()[:, observed] == given[observed], axis=1)
        probabilities = np.where(agrees, np.exp(conditionals[:, ~observed].sum(-1)), 0)
        assert_drawn_from(complete(params, jax.random.key(1), batch), probabilities)
        if observed is first:  # then it is the posterior
            joint = np.where(agrees, np.exp(conditionals.sum(-1)), 0)
            np.testing.assert_allclose(probabilities, joint / joint.sum(), atol=1e-9)


@pytest.mark.slow
def test_dropout_needs_a_key_and_classes_a_label():
    (model, params), (plain, _) = build("classes"), build("classes", dropout=0.0)
    batch, key = events("classes", states()[:9]), jax.random.key(0)
    value = plain.log_prob(params, None, batch)
    np.testing.assert_array_equal(model.log_prob(params, None, batch), value)
    np.testing.assert_array_equal(plain.log_prob(params, key, batch), value)
    assert not np.allclose(model.log_prob(params, key, batch), value)
    first = [model.log_conditionals(params, None, events("classes", states()[:1], label))[0, 0] for label in range(3)]
    assert len({float(f) for f in first}) == 3  # a class reaches the first dimension too
    with pytest.raises(ValueError, match="conditional on 3 classes"):
        model.sample(params, key, 2)
