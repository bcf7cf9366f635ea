"""The RBM against enumeration of its joint states; contrastive gradients against the likelihood's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from dgm_jax.models.energy import rbm
from dgm_jax.objectives.contrastive import cd, pcd
from dgm_jax.training.learners import gradient

VISIBLE, HIDDEN = 8, 5


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def states(bits):
    return ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1).astype(np.float64)


def machine(visible=VISIBLE, hidden=HIDDEN, scale=0.8, seed=0, **kwargs):
    model = rbm.make(shape=(visible,), hidden=hidden, **kwargs)
    rng = np.random.default_rng(seed)
    params = {
        "weights": jnp.asarray(scale * rng.normal(size=(visible, hidden))),
        "visible": jnp.asarray(rng.normal(size=visible)),
        "hidden": jnp.asarray(rng.normal(size=hidden)),
        "buffers": {"base": jnp.asarray(rng.normal(size=visible))},
    }
    return model, params


def joint(params):
    """-E(v, h) of every pair of states: [2^V, 2^H]."""
    w, b, c = (np.asarray(params[name]) for name in ("weights", "visible", "hidden"))
    v, h = states(w.shape[0]), states(w.shape[1])
    return (v @ b)[:, None] + (h @ c)[None] + v @ w @ h.T


def enumerated(params):
    """log p(v) of every state, and log Z."""
    log_p = scipy.special.logsumexp(joint(params), axis=1)
    log_z = scipy.special.logsumexp(log_p)
    return log_p - log_z, log_z


def counts(chains):
    index = (np.asarray(chains) @ 2 ** np.arange(chains.shape[1])).astype(int)
    return np.bincount(index, minlength=2 ** chains.shape[1])


def chi_square_p(observed, expected_probs):
    """p-value, with the states expected less than 5 times taken together."""
    expected = expected_probs * observed.sum()
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return scipy.stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue


def exact_draws(params, n, seed=1):
    log_p, _ = enumerated(params)
    index = np.random.default_rng(seed).choice(len(log_p), size=n, p=np.exp(log_p))
    return jnp.asarray(states(VISIBLE)[index])


def test_energy_and_partition_equal_enumeration():
    for visible, hidden in ((VISIBLE, HIDDEN), (HIDDEN, VISIBLE), (6, 11)):
        model, params = machine(visible, hidden)
        log_p, log_z = enumerated(params)
        energy = model.energy(params, None, {"x": jnp.asarray(states(visible))})
        np.testing.assert_allclose(-energy - log_z, log_p, rtol=1e-9)
        value, stderr = model.log_partition(params, jax.random.key(0))
        np.testing.assert_allclose(value, log_z, rtol=1e-12)
        assert stderr == 0
        np.testing.assert_allclose(scipy.special.logsumexp(-energy - value), 0, atol=1e-9)


@pytest.mark.slow
def test_partition_over_many_blocks_and_its_gradient():
    _, params = machine(12, 13)
    log_p, log_z = enumerated(params)
    np.testing.assert_allclose(rbm.exact_log_partition(params), log_z, rtol=1e-12)
    # d log Z / db = E[v]
    gradient = jax.grad(rbm.exact_log_partition)(params)["visible"]
    np.testing.assert_allclose(gradient, np.exp(log_p) @ states(12), rtol=1e-9)


def test_too_many_units_to_enumerate():
    _, params = machine(21, 22)
    with pytest.raises(ValueError, match="21 units"):
        rbm.exact_log_partition(params)


def test_codes_are_the_conditionals():
    model, params = machine()
    conditional = np.exp(joint(params) - scipy.special.logsumexp(joint(params), axis=1, keepdims=True))
    batch = {"x": jnp.asarray(states(VISIBLE))}
    np.testing.assert_allclose(model.encode(params, None, batch), conditional @ states(HIDDEN), rtol=1e-9)
    conditional = np.exp(joint(params) - scipy.special.logsumexp(joint(params), axis=0, keepdims=True))
    decoded = model.decode(params, None, jnp.asarray(states(HIDDEN)))
    np.testing.assert_allclose(decoded, conditional.T @ states(VISIBLE), rtol=1e-9)


def test_gibbs_leaves_p_invariant_and_mixes():
    model, params = machine()
    p = np.exp(enumerated(params)[0])
    start = exact_draws(params, 20_000)
    moved = jax.jit(model.gibbs)(params, jax.random.key(2), start)
    assert (np.asarray(moved) != np.asarray(start)).any(1).mean() > 0.5
    assert chi_square_p(counts(moved), p) > 1e-3
    # and the test would notice another distribution
    other = np.exp(enumerated(machine(seed=9)[1])[0])
    assert chi_square_p(counts(moved), other) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sample_draws_the_tempered_machine(temperature):
    model, params = machine(sample_steps=50)
    samples = jax.jit(lambda key: model.sample(params, key, 20_000, temperature=temperature))(jax.random.key(3))
    tempered = jax.tree.map(lambda x: x / temperature, params)
    assert chi_square_p(counts(samples), np.exp(enumerated(tempered)[0])) > 1e-3


def test_complete_draws_the_conditional():
    model, params = machine(sample_steps=50)
    observed = np.array([1, 1, 0, 1, 0, 0, 1, 0])
    x = np.array([1, 0, 0, 1, 0, 0, 1, 0.0])
    agree = (states(VISIBLE) == x)[:, observed == 1].all(1)
    p = np.where(agree, np.exp(enumerated(params)[0]), 0)
    batch = {
        "x": jnp.broadcast_to(jnp.asarray(x), (20_000, VISIBLE)),
        "observed": jnp.broadcast_to(jnp.asarray(observed), (20_000, VISIBLE)),
    }
    completed = jax.jit(model.complete)(params, jax.random.key(4), batch)
    assert counts(completed)[~agree].sum() == 0
    assert chi_square_p(counts(completed)[agree], p[agree] / p.sum()) > 1e-3


def test_init_starts_at_independent_pixels():
    model = rbm.make(shape=(2, 2, 1), hidden=3)
    x = jnp.asarray([[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], jnp.float64).reshape(4, 2, 2, 1)
    params = model.init(jax.random.key(5), {"x": x, "mask": jnp.asarray([1.0, 1.0, 1.0, 0.0])})
    rates = np.array([3.5, 0.5, 1.5, 2.5]) / 4
    np.testing.assert_allclose(params["visible"], scipy.special.logit(rates), rtol=1e-9)
    np.testing.assert_array_equal(params["buffers"]["base"], params["visible"])
    assert model.sample(params, jax.random.key(6), 3).shape == (3, 2, 2, 1)


def likelihood_gradient(params, x):
    """Of the mean of -log p(x), by differences of the enumerated conditional expectations."""
    p = np.exp(enumerated(params)[0])
    v = states(VISIBLE)
    w, c = np.asarray(params["weights"]), np.asarray(params["hidden"])

    def statistics(weight, v):
        h = scipy.special.expit(v @ w + c)
        return {"weights": (v * weight[:, None]).T @ h, "visible": weight @ v, "hidden": weight @ h}

    data = statistics(np.full(len(x), 1 / len(x)), np.asarray(x))
    model = statistics(p, v)
    return {name: model[name] - data[name] for name in data}


@pytest.mark.parametrize("objective", ["cd", "pcd"])
def test_gradient_of_chains_at_equilibrium_is_the_likelihoods(objective):
    """CD started at exact draws of p is a zero-mean gradient; PCD's with any data is the likelihood's."""
    model, params = machine()
    n = 2000
    data = exact_draws(params, n, seed=2) if objective == "cd" else jnp.asarray(states(VISIBLE)[[1, 50, 200]])
    repeats = 40
    if objective == "cd":
        loss = cd(model, k=1)
        batches = exact_draws(params, n * repeats, seed=3).reshape(repeats, n, VISIBLE)
        value = jax.grad(lambda p, key, x: loss.apply(p, (), key, {"x": x})[0])
        expected = {name: np.zeros_like(params[name]) for name in ("weights", "visible", "hidden")}
    else:
        loss = pcd(model, k=1, chains=n)
        batches = exact_draws(params, n * repeats, seed=3).reshape(repeats, n, VISIBLE)
        value = jax.grad(lambda p, key, chains: loss.apply(p, {"chains": chains}, key, {"x": data})[0])
        expected = likelihood_gradient(params, data)
    keys = jax.random.split(jax.random.key(7), repeats)
    grads = jax.jit(lambda: jax.lax.map(lambda a: value(params, *a), (keys, batches)))()
    for name, exact in expected.items():
        stderr = np.asarray(grads[name]).std(0, ddof=1) / np.sqrt(repeats)
        errors = (np.asarray(grads[name]).mean(0) - exact) / stderr
        assert np.abs(errors).max() < 4.5, name
        assert stderr.max() < 0.02


def flipping(model):
    """The model with a sweep that can be followed by eye: every pixel changes."""
    return model._replace(gibbs=lambda params, key, chains: 1 - chains)


@pytest.mark.slow
def test_chains_are_kept_and_held_constant():
    model, params = machine()
    x = jnp.asarray(states(VISIBLE)[[5, 100, 31]])
    loss = pcd(flipping(model), k=3, chains=7)
    carry = loss.init(params, jax.random.key(8), {"x": x})
    np.testing.assert_array_equal(carry["chains"], x[jnp.array([0, 1, 2, 0, 1, 2, 0])])
    # the padding weighs nothing
    batch = {"x": x.at[2].set(0.5), "mask": jnp.asarray([1.0, 1.0, 0.0])}
    value, out = loss.apply(params, carry, jax.random.key(8), batch)
    np.testing.assert_array_equal(out.carry["chains"], 1 - carry["chains"])
    energy = model.energy(params, None, {"x": x})
    moved = model.energy(params, None, {"x": 1 - carry["chains"]})
    np.testing.assert_allclose(value, energy[:2].mean() - moved.mean(), rtol=1e-12)
    np.testing.assert_allclose(out.metrics["energy"], energy[:2].mean(), rtol=1e-12)
    # a sweep that depends on the parameters smoothly passes no gradient on
    leaky = model._replace(gibbs=lambda params, key, chains: chains + params["weights"].sum())
    grads = [
        jax.grad(lambda p, m=m: cd(m).apply(p, (), jax.random.key(8), {"x": x})[0])(params)
        for m in (leaky, model._replace(gibbs=lambda _, key, chains: chains + params["weights"].sum()))
    ]
    jax.tree.map(np.testing.assert_array_equal, *grads)


@pytest.mark.slow
def test_chains_move_by_k_sweeps_a_step_with_new_keys():
    model, _ = machine()
    x = jnp.asarray(states(VISIBLE)[[5, 100, 31, 7]])
    learner = gradient(model.init, pcd(model, k=2, chains=500), optax.sgd(0.0))
    state = learner.init(jax.random.key(9), {"x": x})
    seen = [state.carry["chains"]]
    for _ in range(3):
        state, _ = learner.step(state, jax.random.key(9), {"x": x})
        seen.append(state.carry["chains"])
    assert all(chains.shape == (500, VISIBLE) and set(np.unique(chains)) == {0, 1} for chains in seen[1:])
    # with weights near 0 and no learning a sweep is a draw of independent pixels: equal keys would show
    agreement = [(a == b).mean() for a, b in itertools.pairwise(seen[1:])]
    assert max(agreement) < 0.8


@pytest.mark.slow
def test_micro_batches_share_the_chains():
    """Two halves of a batch, each with half of the chains, equal the whole."""
    model, params = machine()
    x = jnp.asarray(states(VISIBLE)[[5, 100, 31, 7]])

    def step(micro):
        learner = gradient(lambda key, batch: params, pcd(flipping(model), chains=6), optax.sgd(0.1), micro)
        state = learner.init(jax.random.key(10), {"x": x})
        return learner.step(state, jax.random.key(10), {"x": x})[0]

    whole, halves = step(1), step(2)
    np.testing.assert_array_equal(whole.carry["chains"], halves.carry["chains"])
    assert not np.array_equal(whole.params["weights"], params["weights"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), whole.params, halves.params)


@pytest.mark.slow
def test_pcd_learns_a_distribution():
    """The exact KL(data | model) falls from that of independent pixels to almost none."""
    v = states(4)
    p = np.where((v.sum(1) == 0) | (v.sum(1) == 4), 5.0, 1.0)
    p /= p.sum()
    x = v[np.random.default_rng(11).choice(16, size=(1000, 100), p=p)]
    model = rbm.make(shape=(4,), hidden=4)
    learner = gradient(model.init, pcd(model, k=1, chains=200), optax.adam(optax.linear_schedule(0.05, 0, 1000)))
    state = learner.init(jax.random.key(12), {"x": jnp.asarray(x[0])})

    def divergence(params):
        log_p = -model.energy(params, None, {"x": jnp.asarray(v)}) - model.log_partition(params, None)[0]
        return float(p @ (np.log(p) - np.asarray(log_p)))

    first = divergence(state.params)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, x: learner.step(s, jax.random.key(12), {"x": x}), s, x))
    assert first > 0.2
    assert divergence(run(state)[0].params) < 0.1 * first


@pytest.mark.slow
def test_ais_agrees_with_the_exact_partition_function():
    """256 visible and 16 hidden units with weights as strong as trained ones, in float32."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(13)
        params = {
            "weights": jnp.asarray(rng.normal(size=(256, 16)) * 0.3, jnp.float32),
            "visible": jnp.asarray(rng.normal(size=256) - 2, jnp.float32),
            "hidden": jnp.asarray(rng.normal(size=16), jnp.float32),
        }
        exact = jax.jit(rbm.exact_log_partition)(params)
        base = params["visible"] + 0.5 * params["weights"].sum(1)
        betas = jnp.linspace(0, 1, 1001)
        estimate = jax.jit(lambda key: rbm.ais_log_partition(params, key, base, betas, 100))(jax.random.key(14))
        assert abs(estimate.log_z - exact) < 0.1
        assert estimate.stderr < 0.1
        assert abs(estimate.log_weights[0] - (exact - estimate.log_z + estimate.log_weights.mean())) < 5


@pytest.mark.slow
def test_log_partition_of_large_layers_is_an_estimate():
    model, params = machine(17, 18, scale=0.3, ais_betas=300, ais_chains=200)
    exact = rbm.exact_log_partition(params)
    log_z, stderr = jax.jit(model.log_partition)(params, jax.random.key(15))
    assert 0 < stderr < 0.05
    assert abs(log_z - exact) < 4 * stderr
