"""The optimizer section of a config: schedules, clipping and decay against their formulas, every optimizer by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax import api, zoo
from dgm_jax.training import optimizers
from dgm_jax.types import Counts, Model

STEPS, TIMES = 100, [0, 10, 20, 40, 80, 100, 150]  # before, in and after the 20 steps of warm-up, and beyond the end
RATES = {  # at TIMES; the peak is 0.4, and what decays to a share of it decays to 0.1 of it
    "constant": [0, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4],
    "cosine": [0, 0.2, 0.4, *(0.4 * (0.1 + 0.9 * (1 + math.cos(u * math.pi)) / 2) for u in (0.25, 0.75)), 0.04, 0.04],
    "linear": [0, 0.2, 0.4, 0.31, 0.13, 0.04, 0.04],
    "inverse_sqrt": [0, 0.2, 0.4, *(0.4 * math.sqrt(20 / t) for t in TIMES[3:])],
}


def first_update(tx, grads, params):
    return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])(grads, params)


def rates(**options):
    """The learning rates of a run, read off what SGD takes from a parameter whose gradient is 1."""
    tx = optimizers.make(STEPS, "sgd", 0.4, final=0.1, **options)
    w = jnp.zeros(())
    _, updates = jax.lax.scan(lambda state, g: tx.update(g, state, w)[::-1], tx.init(w), jnp.ones(max(TIMES) + 1))
    return -np.asarray(updates)


@pytest.mark.parametrize("schedule", RATES)
def test_schedules(schedule):
    np.testing.assert_allclose(rates(schedule=schedule, warmup=20)[TIMES], RATES[schedule], rtol=1e-5, atol=1e-8)
    at_once = rates(schedule=schedule)  # over all of the run
    end = {"constant": 0.4, "inverse_sqrt": 0.4 / math.sqrt(101)}.get(schedule, 0.04)
    np.testing.assert_allclose(at_once[[0, 100]], [0.4, end], rtol=1e-5)


def test_what_there_is_not():
    with pytest.raises(ValueError, match=r"unknown optimizer 'lion'; there are adam, adamw, sgd, rmsprop, adagrad$"):
        optimizers.make(STEPS, "lion")
    with pytest.raises(ValueError, match=f"unknown schedule 'step'; there are {', '.join(RATES)}$"):
        optimizers.make(STEPS, schedule="step")
    with pytest.raises(TypeError, match="momentum"):
        optimizers.make(STEPS, "adam", momentum=0.9)
    misspelt = api.prepare(api.load_config("vae_digits:tiny", {"optimizer.name": "adm"}))
    with pytest.raises(ValueError, match="unknown optimizer 'adm'"):
        zoo.build(misspelt.config)


@pytest.mark.parametrize("size, moved", [(1e9, 0.1), (0.5, 0.05)])
def test_a_gradient_is_clipped_by_its_norm_over_all_leaves(size, moved):
    tx = optimizers.make(STEPS, "sgd", 0.1, clip=1.0)
    grads = {"a": np.float32([0.6 * size, 0.0]), "b": np.float32(0.8 * size)}
    updates = first_update(tx, grads, grads)
    np.testing.assert_allclose(updates["a"], [-0.6 * moved, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.8 * moved, rtol=1e-6)


# kernels and other matrices decay; biases, be they of a value of x each, and vectors do not
DECAYS = {
    "dense": {"kernel": True, "bias": False},
    "stack": [{"kernel": True, "scale": False}],
    "output": {"bias": False, "offset": False, "loadings": True},
}
WEIGHTS = {
    "dense": {"kernel": np.float32([[1.0, -2.0]]), "bias": np.float32([3.0, 4.0])},
    "stack": [{"kernel": np.full((2, 1, 2), 5.0, np.float32), "scale": np.float32([6.0])}],
    "output": {name: np.full((2, 2), 7.0, np.float32) for name in ("bias", "offset", "loadings")},
}


def assert_trees_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_kernels_are_what_decays():
    assert optimizers.is_kernel(WEIGHTS) == DECAYS


def test_l2_adds_the_gradient_of_half_the_square_of_kernels():
    tx = optimizers.make(STEPS, "sgd", 0.1, l2=0.3)
    updates = first_update(tx, jax.tree.map(np.ones_like, WEIGHTS), WEIGHTS)
    assert_trees_close(updates, jax.tree.map(lambda w, decays: -0.1 * (1 + 0.3 * w * decays), WEIGHTS, DECAYS))


def test_adamw_decays_kernels_alone():
    tx = optimizers.make(STEPS, "adamw", 0.1, weight_decay=0.3)
    updates = first_update(tx, jax.tree.map(np.zeros_like, WEIGHTS), WEIGHTS)
    assert_trees_close(updates, jax.tree.map(lambda w, decays: -0.1 * 0.3 * w * decays, WEIGHTS, DECAYS))


@pytest.mark.parametrize(
    "options, moved",
    [
        ({}, [-0.1, -0.1]),
        ({"momentum": 0.5}, [-0.1, -0.15]),
        ({"momentum": 0.5, "nesterov": True}, [-0.15, -0.175]),
    ],
)
def test_momentum(options, moved):
    tx = optimizers.make(STEPS, "sgd", 0.1, **options)
    w = np.float32(1.0)
    _, updates = jax.lax.scan(lambda state, g: tx.update(g, state, w)[::-1], tx.init(w), np.ones(2, np.float32))
    np.testing.assert_allclose(updates, moved, rtol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_descends_as_a_config_names_it(name):
    section = api.load_config("vae_digits:tiny", {"optimizer.name": name}).optimizer
    tx = optimizers.make(STEPS, **section.to_dict())

    def value(params):
        return sum(((leaf - 1) ** 2).sum() for leaf in jax.tree.leaves(params))

    updates = first_update(tx, jax.tree.map(lambda w: 2 * (w - 1), WEIGHTS), WEIGHTS)
    assert value(jax.tree.map(np.add, WEIGHTS, updates)) < value(WEIGHTS)  # which NaN is not


@pytest.mark.parametrize("power", [0.0, 0.7])
def test_em_blends_at_the_rate_of_its_config(power):
    """The rate of M-step t is (t + offset)^-power, and 1 at first or without a power; each takes two steps here."""
    fields = {"every": "2 steps", "power": power, "offset": 3.0}
    config = api.load_config("mixture_digits:tiny", {f"optimizer.{name}": value for name, value in fields.items()})

    def expect(params, key, batch):
        return batch["x"].sum(), jnp.zeros(len(batch["x"]))

    model = Model(lambda key, batch: {"w": jnp.zeros(())})
    learner = zoo.learner_of(model, Counts(expect, lambda sums: {"w": sums}), api.prepare(config).config)
    x = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)  # M-steps, steps of each, examples
    state, running, step = learner.init(jax.random.key(0), {"x": x[0, 0]}), 0.0, jax.jit(learner.step)
    for t in range(4):
        for batch in x[t]:
            state, _ = step(state, jax.random.key(0), {"x": batch})
        running += ((t + 3.0) ** -power if t else 1.0) * (x[t].sum() - running)
        np.testing.assert_allclose(state.params["w"], running, rtol=1e-5)
