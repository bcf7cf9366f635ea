"""The mixture and the hidden Markov model: likelihoods, posteriors, draws and EM against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from enumeration import assert_drawn_from, states
from hmmlearn.hmm import CategoricalHMM

from dgm_jax.inference import belief
from dgm_jax.models.graphical import hmm, mixture
from dgm_jax.objectives.counting import counting
from dgm_jax.objectives.likelihood import mle
from dgm_jax.types import Model

SHAPES = {"mixture": (2, 4, 1), "hmm": (4, 2, 1)}
MAXIMUM_LIKELIHOOD = {
    "mixture": {"strength": 0.0, "weight_strength": 0.0},
    "hmm": {"strength": 0.0, "chain_strength": 0.0},
}
both = pytest.mark.parametrize("name", ["mixture", pytest.param("hmm", marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def build(name, **options):
    """A model with three states and random parameters."""
    make = {"mixture": mixture.make, "hmm": hmm.make}[name]
    count = {"mixture": "components", "hmm": "states"}[name]
    model = make(shape=SHAPES[name], **{count: 3}, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), events(name, states()))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)


def events(name, x, **more):
    return {"x": jnp.asarray(x).reshape(-1, *SHAPES[name]), **{key: jnp.asarray(a) for key, a in more.items()}}


def data(name, n=40, missing=True):
    """Clustered events with missing pixels, for the chain with padding too, which may hold anything."""
    rng = np.random.default_rng(7)
    means = rng.uniform(size=(4, 8))
    batch = events(name, rng.uniform(size=(n, 8)) < means[rng.integers(0, 4, n)])
    batch["x"] = batch["x"].astype(float)
    if missing:
        batch["observed"] = jnp.asarray(rng.uniform(size=batch["x"].shape) < 0.8).astype(float)
        if name == "hmm":
            batch["length"] = jnp.asarray(rng.integers(1, 5, n))
            batch["x"] = jnp.where(counted(batch) != 0, batch["x"], jnp.nan)
    return batch


def counted(batch):
    """Which pixels are data."""
    seen = np.ones(batch["x"].shape) if "observed" not in batch else np.array(batch["observed"])
    if "length" in batch:
        seen[np.arange(4)[None] >= np.asarray(batch["length"])[:, None]] = 0
    return seen


@both
def test_it_sums_to_one_and_has_its_samples_and_completions(name):
    model, params = build(name)
    log_prob = jax.jit(model.log_prob)
    joint = np.exp(log_prob(params, None, events(name, states())))
    np.testing.assert_allclose(joint.sum(), 1, atol=1e-9)
    sample = jax.jit(model.sample, static_argnums=2)
    assert_drawn_from(sample(params, jax.random.key(0), 20000), joint)
    cooled = jax.tree.map(lambda p: p / 0.5, params)  # temperature divides all logits
    cold = sample(params, jax.random.key(0), 20000, None, 0.5)
    assert_drawn_from(cold, np.exp(log_prob(cooled, None, events(name, states()))))

    given, observed = states()[0b01101001], np.array([1, 0, 0, 1, 0, 0, 0, 1])
    batch = events(name, np.tile(given, (10000, 1)))
    batch["observed"] = jnp.broadcast_to(observed, (10000, 8)).reshape(batch["x"].shape)
    posterior = np.where(np.all(states()[:, observed == 1] == given[observed == 1], axis=1), joint, 0)
    assert_drawn_from(jax.jit(model.complete)(params, jax.random.key(1), batch), posterior / posterior.sum())
    np.testing.assert_allclose(log_prob(params, None, batch)[0], np.log(posterior.sum()), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 2.0])
@both
def test_em_never_descends(name, strength):
    state_strength = {"mixture": "weight_strength", "hmm": "chain_strength"}[name]
    model, _ = build(name, strength=strength, **{state_strength: strength / 2})
    counts, batch, key = counting(model), data(name), jax.random.key(0)
    width = 8 if name == "mixture" else 2
    x, seen = (np.nan_to_num(a).reshape(-1, width) for a in (batch["x"], counted(batch)))
    mean = ((seen * x).sum(0) + 0.5) / (seen.sum(0) + 1)

    def log_prior(params):
        params = jax.tree.map(np.asarray, params)
        logits = params.pop("emission")
        discrete = sum(scipy.special.log_softmax(p, axis=-1).sum() for p in params.values())
        return strength * (mean * logits - np.logaddexp(0, logits)).sum() + strength / 2 * discrete

    @jax.jit
    def step(params):
        statistics, log_likelihood = counts.expect(params, key, batch)
        return counts.maximize(statistics), log_likelihood.sum()

    params, values = jax.jit(model.init)(key, batch), []
    for _ in range(25):
        new, value = step(params)
        values.append(value + (log_prior(params) if strength else 0))
        params = new
    assert np.all(np.diff(values) > -1e-8)
    assert values[-1] - values[0] > 1


@both
def test_the_gradient_is_that_of_the_expected_counts(name):
    """Fisher's identity: d log p(x) = E[d log p(x, z) | x], from the statistics of the E-step."""
    model, params = build(name)
    batch = data(name)
    statistics, _ = jax.jit(model.expect)(params, jax.random.key(0), batch)
    grads = jax.jit(jax.grad(lambda p: model.log_prob(p, None, batch).sum()))(params)
    expected = {"emission": statistics["ones"] - statistics["seen"] * jax.nn.sigmoid(params["emission"])}
    entries = {"weights": "count"} if name == "mixture" else {"initial": "initial", "transition": "transition"}
    for entry, count in entries.items():
        counts = np.asarray(statistics[count])
        expected[entry] = counts - counts.sum(-1, keepdims=True) * jax.nn.softmax(params[entry])
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=1e-9), grads, expected)


@pytest.mark.parametrize("missing", [True, False])
@both
def test_statistics_add_up_and_padding_adds_nothing(name, missing):
    model, params = build(name)
    batch, key, expect = data(name, missing=missing), jax.random.key(0), jax.jit(model.expect)
    whole, values = expect(params, key, batch)
    parts = []
    for i in range(2):
        part = {k: jnp.concatenate([v[i::2], v[:3]]) for k, v in batch.items()}
        part["x"] = part["x"].at[20:].set(jnp.nan)
        part["mask"] = (jnp.arange(23) < 20).astype(float)
        parts.append(expect(params, key, part))
        np.testing.assert_allclose(parts[i][1][:20], values[i::2], rtol=1e-9)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-9), whole, parts[0][0], parts[1][0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(model.init)(key, part)))


@both
def test_counts_of_zero_keep_everything_finite(name):
    model, params = build(name, **MAXIMUM_LIKELIHOOD[name])
    blank = events(name, np.zeros((3, 8)))
    statistics, _ = jax.jit(model.expect)(params, jax.random.key(0), blank)
    statistics = jax.tree.map(lambda s: s.at[0].set(0), statistics)  # a state that nothing visits
    if name == "hmm":
        statistics["transition"] = statistics["transition"].at[:, 0].set(0)
    new = model.maximize(statistics)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p, batch: model.log_prob(p, None, batch).sum()))
    np.testing.assert_allclose(value_and_grad(new, blank)[0], 0, atol=1e-6)
    value, grads = value_and_grad(new, events(name, np.ones((3, 8))))
    assert np.isfinite(value) and value < -1000
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_mixture_em_step_is_its_definition():
    model, params = build("mixture", **MAXIMUM_LIKELIHOOD["mixture"])
    batch = data("mixture")
    x, observed = (np.asarray(batch[key]).reshape(40, 8) for key in ("x", "observed"))
    mu, weights = scipy.special.expit(params["emission"]), scipy.special.softmax(params["weights"])
    joint = np.tile(weights, (40, 1))
    for n, k, d in np.ndindex(40, 3, 8):
        if observed[n, d]:
            joint[n, k] *= mu[k, d] if x[n, d] else 1 - mu[k, d]
    r = joint / joint.sum(1, keepdims=True)
    statistics, log_likelihood = jax.jit(model.expect)(params, jax.random.key(0), batch)
    new = model.maximize(statistics)
    np.testing.assert_allclose(log_likelihood, np.log(joint.sum(1)), rtol=1e-9)
    np.testing.assert_allclose(jax.nn.softmax(new["weights"]), r.mean(0), rtol=1e-9)
    expected = np.einsum("nk,nd->kd", r, x * observed) / np.einsum("nk,nd->kd", r, observed)
    np.testing.assert_allclose(jax.nn.sigmoid(new["emission"]), expected, rtol=1e-7)
    np.testing.assert_allclose(model.encode(params, None, batch), r, rtol=1e-7)
    np.testing.assert_allclose(model.decode(params, None, r).reshape(40, 8), r @ mu, rtol=1e-7)


# the hidden Markov model


def numpy_chain(params):
    initial = scipy.special.log_softmax(params["initial"])
    return initial, scipy.special.log_softmax(params["transition"], axis=1), np.asarray(params["emission"])


def enumerate_paths(params, x, seen, length):
    """All paths [S^length, length] and their log p(path, x), one factor at a time."""
    initial, transition, logits = numpy_chain(params)
    paths = np.array(list(itertools.product(range(3), repeat=length)))
    joint = np.zeros(len(paths))
    for i, path in enumerate(paths):
        for t, state in enumerate(path):
            joint[i] += transition[path[t - 1], state] if t else initial[state]
            for w in range(2):
                if seen[t, w]:
                    joint[i] += x[t, w] * logits[state, w] - np.logaddexp(0, logits[state, w])
    return paths, joint


def test_hmm_sums_over_all_paths_in_likelihood_beliefs_and_counts():
    model, params = build("hmm", **MAXIMUM_LIKELIHOOD["hmm"])
    batch = data("hmm", n=6)
    values, marginals = (jax.jit(f)(params, None, batch) for f in (model.log_prob, model.encode))
    best = jax.jit(build("hmm", codes="path")[0].encode)(params, None, batch)
    initial, transition, ones, total = np.zeros(3), np.zeros((3, 3)), np.zeros((3, 2)), np.zeros((3, 2))
    xs, seens, lengths = np.asarray(batch["x"]).reshape(-1, 4, 2), counted(batch).reshape(-1, 4, 2), batch["length"]
    for i, (x, seen, length) in enumerate(zip(xs, seens, np.asarray(lengths), strict=True)):
        paths, joint = enumerate_paths(params, x, seen, length)
        np.testing.assert_allclose(values[i], scipy.special.logsumexp(joint), atol=1e-9)
        np.testing.assert_array_equal(best[i, :length], paths[joint.argmax()])
        weights = scipy.special.softmax(joint)
        np.add.at(initial, paths[:, 0], weights)
        for t in range(length):
            belief_t = np.bincount(paths[:, t], weights, minlength=3)
            np.testing.assert_allclose(marginals[i, t], belief_t, atol=1e-9)
            ones += belief_t[:, None] * np.where(seen[t], x[t], 0)
            total += belief_t[:, None] * seen[t]
            if t:
                np.add.at(transition, (paths[:, t - 1], paths[:, t]), weights)
    new = model.maximize(jax.jit(model.expect)(params, jax.random.key(0), batch)[0])
    np.testing.assert_allclose(jax.nn.softmax(new["initial"]), initial / initial.sum(), rtol=1e-7)
    np.testing.assert_allclose(jax.nn.softmax(new["transition"]), transition / transition.sum(1)[:, None], rtol=1e-7)
    np.testing.assert_allclose(jax.nn.sigmoid(new["emission"]), ones / total, rtol=1e-7, atol=1e-12)


def test_hmm_conditionals_are_those_of_the_joint():
    model, params = build("hmm")
    batch = events("hmm", states())
    joint = np.asarray(jax.jit(model.log_prob)(params, None, batch)).reshape((2,) * 8)
    upto = [scipy.special.logsumexp(joint, axis=tuple(range(d, 8)), keepdims=True) for d in range(9)]
    expected = np.stack([np.broadcast_to(upto[d + 1] - upto[d], joint.shape).reshape(-1) for d in range(8)], axis=1)
    conditionals = jax.jit(model.log_conditionals)(params, None, batch)
    assert conditionals.shape == batch["x"].shape
    np.testing.assert_allclose(conditionals.reshape(256, 8), expected, atol=1e-9)


def test_belief_agrees_with_hmmlearn():
    initial, transition, logits = numpy_chain(build("hmm")[1])
    evidence = (states(2)[:, None] * logits - np.logaddexp(0, logits)).sum(-1)  # a row is one of four symbols
    reference = CategoricalHMM(n_components=3)
    reference.startprob_, reference.transmat_ = np.exp(initial), np.exp(transition)
    reference.emissionprob_, reference.n_features = np.exp(evidence).T, 4
    symbols = np.random.default_rng(1).integers(0, 4, 30)
    chain = jnp.asarray(initial), jnp.asarray(transition), jnp.asarray(evidence[symbols])[None]
    smoothed = jax.jit(belief.smooth)(*chain)
    np.testing.assert_allclose(smoothed.log_prob[0], reference.score(symbols[:, None]), rtol=1e-9)
    marginals = np.exp(smoothed.log_marginals[0])
    np.testing.assert_allclose(marginals, reference.predict_proba(symbols[:, None]), atol=1e-9)
    value, path = reference.decode(symbols[:, None])
    found, found_value = jax.jit(belief.viterbi)(*chain)
    np.testing.assert_array_equal(found[0], path)
    np.testing.assert_allclose(found_value[0], value, rtol=1e-9)


def test_sampled_paths_are_drawn_from_their_posterior():
    _, params = build("hmm")
    x = np.array([[1.0, 0], [0, 0], [1, 1], [0, 1]])
    _, joint = enumerate_paths(params, x, np.ones((4, 2)), 4)
    initial, transition, logits = (jnp.asarray(a) for a in numpy_chain(params))
    evidence = (x[:, None] * np.asarray(logits) - np.logaddexp(0, logits)[None]).sum(-1)
    keys = jax.random.split(jax.random.key(0), 10000)

    @jax.jit
    def draw(keys):
        filtered = belief.forward(initial, transition, jnp.asarray(evidence)[None]).log_filtered
        return jax.vmap(lambda key: belief.sample_states(key, filtered, transition))(keys)

    assert_drawn_from(draw(keys), scipy.special.softmax(joint), base=3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_beliefs_are_exact_where_probabilities_underflow(dtype):
    """States that only improbable paths reach, and sequences that leave nothing else, against sums over paths."""
    rng = np.random.default_rng(0)
    initial = np.array([0.0, -300.0, -2000.0], dtype)
    transition = np.array([[-1e-9, -900.0, -np.inf], [-0.7, -0.7, -150.0], [-np.inf, -1.1, -0.4]], dtype)
    evidence = -np.abs(rng.normal(size=(5, 4, 3)) * np.array([1.0, 30.0, 500.0, 30.0])[:, None]).astype(dtype)
    evidence[1, 1] = [-np.inf, -3.0, -np.inf]
    paths = np.array(list(itertools.product(range(3), repeat=4)))
    joint = initial[paths[:, 0]] + evidence[:, range(4), paths].sum(-1)
    joint = joint + transition[paths[:, :-1], paths[:, 1:]].sum(-1)
    log_prob = scipy.special.logsumexp(joint.astype(float), axis=1)
    weights = np.exp(joint - log_prob[:, None])
    smoothed = jax.jit(belief.smooth)(*(jnp.asarray(a) for a in (initial, transition, evidence)))
    assert smoothed.log_prob.dtype == dtype
    tolerance = {"rtol": 1e-5 if dtype == np.float32 else 1e-12, "atol": 1e-4 if dtype == np.float32 else 1e-9}
    np.testing.assert_allclose(smoothed.log_prob, log_prob, **tolerance)
    marginals = np.stack([(weights[:, :, None] * (paths == s)).sum(1) for s in range(3)], axis=-1)
    np.testing.assert_allclose(np.exp(smoothed.log_marginals), marginals, **tolerance)
    pairs = np.zeros((3, 3))
    for t in range(3):
        np.add.at(pairs, (paths[:, t], paths[:, t + 1]), weights.sum(0))
    np.testing.assert_allclose(smoothed.transitions, pairs, **tolerance)


def test_an_impossible_sequence_has_probability_zero_and_no_nan():
    certain = jnp.log(jnp.eye(2))  # never leaves its state, and no state can emit both
    evidence = jnp.array([[[-jnp.inf, 0.0], [0.0, -jnp.inf]]])
    filtered = belief.forward(jnp.log(jnp.array([0.5, 0.5])), certain, evidence)
    assert filtered.log_evidence.sum() == -jnp.inf
    assert not any(np.isnan(leaf).any() for leaf in filtered)


# objectives


def test_objectives_ask_for_what_they_need():
    model, params = build("mixture")
    loss, key = mle(model), jax.random.key(0)
    batch = events("mixture", states()[:5]) | {"mask": jnp.array([1.0, 1, 0, 1, 0])}
    value, out = loss.apply(params, loss.init(params, key, batch), key, batch)
    expected = -np.asarray(model.log_prob(params, None, batch))[[0, 1, 3]].mean()
    np.testing.assert_allclose([value, out.metrics["loss"], out.metrics["nll"]], expected, rtol=1e-9)
    with pytest.raises(TypeError, match="'mle' needs the capability 'log_prob'"):
        mle(Model(init=model.init))
    with pytest.raises(TypeError, match="'counting' needs the capability 'expect', 'maximize'"):
        counting(Model(init=model.init, log_prob=model.log_prob))
