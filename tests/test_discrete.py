"""Models with discrete latents against numpy, and the estimators of their gradients against sums over all draws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from enumeration import assert_drawn_from, states
from jax.lax import stop_gradient

from dgm_jax.inference.importance import log_weights
from dgm_jax.models.latent import categorical, sbn, units, vae
from dgm_jax.numerics import log_mean_exp, masked_mean
from dgm_jax.objectives import discrete, variational
from dgm_jax.training.learners import gradient
from dgm_jax.training.wrappers import DEVICES, over_devices
from dgm_jax.verification import Space, verify_learner
from dgm_jax.verification.space import random_batch, widen

BITS = 3
X = states(BITS)
MASK = jnp.asarray([1.0, 1.0, 0.0])  # the estimators see padding
DRAWS = 20_000


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def subject(name, classes=0):
    """A model of three bits, rough parameters, and all values of its latents, leaves [S, ...]."""
    with jax.enable_x64(True):
        if name == "sbn":
            model = sbn.make(shape=(BITS,), latent=(2, 2), classes=classes)
            z = states(4)
            z = jnp.asarray(z[:, :2]), jnp.asarray(z[:, 2:])
        else:
            model = categorical.make(shape=(BITS,), latent=2, categories=3, hidden=(4,), classes=classes)
            z = jnp.asarray([np.eye(3)[list(index)] for index in itertools.product(range(3), repeat=2)])
        rng = np.random.default_rng(1)
        first = model.init(jax.random.key(0), batch_of(X, classes))
        return model, jax.tree.map(lambda p: jnp.asarray(0.8 * rng.normal(size=p.shape)), first), z


def batch_of(x, classes=0):
    return {"x": jnp.asarray(x)} | ({"cond": jnp.full(len(x), classes - 1)} if classes else {})


def tables(model, params, z, batch):
    """log p(x, z) and log q(z | x) of all z, [S, B] each."""
    n = len(batch["x"])

    def one(z):
        z = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (n, *leaf.shape)), z)
        return model.log_joint(params, z, batch), model.log_posterior(params, z, batch)

    return jax.vmap(one)(z)


# the models


def dense(tree, x):
    """Layers with tanh between, as `hidden` has them."""
    for i in range(len(tree)):
        x = x @ np.asarray(tree[f"Dense_{i}"]["kernel"]) + np.asarray(tree[f"Dense_{i}"]["bias"])
        x = np.tanh(x) if i < len(tree) - 1 else x
    return x


def bernoulli(x, logits):
    logits = np.asarray(logits)
    return (x * logits - np.logaddexp(0, logits)).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "classes"), [((), 0), ((3,), 2)])
def test_belief_network_equals_numpy(hidden, classes):
    model = sbn.make(shape=(3, 1), latent=(2, 4), hidden=hidden, classes=classes)
    batch = batch_of(X[:6, :, None], classes)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), model.init(jax.random.key(0), batch))
    x, z_1, z_2 = X[:6], rng.integers(2, size=(6, 2)) * 1.0, rng.integers(2, size=(6, 4)) * 1.0
    label = np.tile([0.0, 1.0], (6, 1))[:, :classes]

    def net(name, layer):
        return dense(params[name], np.concatenate([layer, label], axis=1))

    top = params["prior"][1] if classes else params["prior"]
    log_p = bernoulli(z_2, top) + bernoulli(z_1, net("decoder_1", z_2))
    log_p += bernoulli(x, net("decoder", z_1) + np.asarray(params["offset"]))
    log_q = bernoulli(z_1, net("encoder_0", x)) + bernoulli(z_2, net("encoder_1", z_1))
    z = jnp.asarray(z_1), jnp.asarray(z_2)
    np.testing.assert_allclose(model.log_joint(params, z, batch), log_p, rtol=1e-9)
    np.testing.assert_allclose(model.log_posterior(params, z, batch), log_q, rtol=1e-9)
    np.testing.assert_allclose(model.encode(params, None, batch), scipy.special.expit(net("encoder_0", x)), rtol=1e-9)
    drawn, log_q = model.draw(params, jax.random.key(1), batch)
    np.testing.assert_allclose(log_q, model.log_posterior(params, drawn, batch), rtol=1e-9)


@pytest.mark.slow
def test_categorical_vae_equals_numpy():
    model, params, z = subject("categorical")
    log_p, log_q = jax.jit(lambda: tables(model, params, z, batch_of(X)))()
    z, logits = np.asarray(z), {}
    for name, inputs in (("encoder", X), ("decoder", np.sqrt(3) * z.reshape(9, 6))):
        first, last = ({k: np.asarray(v) for k, v in params[name][f"Dense_{i}"].items()} for i in range(2))
        logits[name] = np.maximum(inputs @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]
    posterior = scipy.special.log_softmax(logits["encoder"].reshape(8, 2, 3), -1)
    log_prior = np.einsum("snk,nk->s", z, scipy.special.log_softmax(params["prior"], -1))
    on_x = bernoulli(X[None], (logits["decoder"] + np.asarray(params["offset"]))[:, None])
    np.testing.assert_allclose(log_q, np.einsum("snk,bnk->sb", z, posterior), rtol=1e-9)
    np.testing.assert_allclose(log_p, on_x + log_prior[:, None], rtol=1e-9)
    np.testing.assert_allclose(model.encode(params, None, batch_of(X)), np.exp(posterior), rtol=1e-9)
    rates, _ = model.relax(1.0, "soft").rate_distortion(params, jax.random.key(0), batch_of(X))
    rate_of_z = (np.exp(log_q) * (log_q - log_prior[:, None])).sum(0)  # however soft the draws are
    np.testing.assert_allclose(rates.sum(-1), rate_of_z, rtol=1e-9)


def test_categorical_vae_of_grey_levels_sums_to_one():
    levels = np.asarray(list(itertools.product(range(4), repeat=2)), float)  # all events
    model = categorical.make(shape=(2,), latent=2, categories=3, hidden=(4,), output="logistic", components=2, levels=4)
    z = jnp.asarray([np.eye(3)[list(index)] for index in itertools.product(range(3), repeat=2)])
    rng = np.random.default_rng(3)
    first = model.init(jax.random.key(0), batch_of(levels))
    params = jax.tree.map(lambda p: jnp.asarray(0.8 * rng.normal(size=p.shape)), first)
    log_p, log_q = jax.jit(lambda: tables(model, params, z, batch_of(levels)))()
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(log_q).sum(0), 1, rtol=1e-9)
    assert model.support == "levels"
    given_z = scipy.special.softmax(log_p, axis=1)
    np.testing.assert_allclose(model.decode(params, None, z), given_z @ levels, rtol=1e-9)


@pytest.mark.parametrize("name", ["sbn", "categorical"])
def test_dreams_are_draws_of_the_joint(name):
    """All probabilities sum to one, and (x, z) are drawn with them; so are x alone."""
    model, params, z = subject(name, classes=2)
    batch = batch_of(X, classes=2)
    log_p, log_q = jax.jit(lambda: tables(model, params, z, batch))()
    np.testing.assert_allclose(jnp.exp(log_q).sum(0), 1, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=1e-9)
    n = 20_000
    cond = jnp.ones(n, int)
    drawn, x = jax.jit(model.dream, static_argnums=2)(params, jax.random.key(3), n, cond)
    chosen = np.stack([codes(name, z)[:, None] * 8 + np.arange(8)[None]]).reshape(-1)
    assert (chosen == np.arange(len(chosen))).all()
    index = codes(name, drawn) * 8 + np.asarray(x) @ [4, 2, 1]
    assert_drawn_from(index[:, None], np.exp(log_p).reshape(-1), base=len(chosen))
    x = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(4), n, cond)
    assert_drawn_from(x, np.exp(log_p).sum(0))


def codes(name, z):
    """The numbers of values z in the order of `subject`."""
    if name == "sbn":
        return np.concatenate(z, axis=1).astype(int) @ [8, 4, 2, 1]
    return np.asarray(z).argmax(-1) @ [3, 1]


# estimators


def exact_bound(model, params, z, batch, k, from_q=True, cut=False):
    """E[log 1/k sum_i w_i] over all k-tuples of z, averaged over the batch; `cut`: as if q were constant."""
    log_p, log_q = tables(model, params, z, batch)
    log_q = stop_gradient(log_q) if cut else log_q
    tuples = np.array(list(itertools.product(range(len(log_q)), repeat=k)))
    bound = log_mean_exp((log_p - log_q)[tuples], axis=1)
    return jnp.sum(jnp.exp(log_q[tuples].sum(1)) * bound, axis=0).mean()


def exact_wake_sleep(model, params, z, batch, k, recognition):
    """What reweighted wake-sleep is a gradient of, with its k draws, where what is held is held."""
    log_p, log_q = tables(model, params, z, batch)
    tuples = np.array(list(itertools.product(range(len(log_q)), repeat=k)))
    chance = jnp.exp(log_q[tuples].sum(1))
    weights = jax.nn.softmax((log_p - log_q)[tuples], axis=1)
    wake = -jnp.sum(stop_gradient(chance[:, None] * weights) * log_q[tuples], axis=(0, 1)).mean()
    log_p, log_q = tables(model, params, z, batch_of(X))
    sleep = -jnp.sum(stop_gradient(jnp.exp(log_p)) * log_q)
    terms = {"wake": wake, "sleep": sleep, "both": wake + sleep}
    return -exact_bound(model, params, z, batch, k, cut=True) + terms[recognition]


def estimates(loss, params, carry, seed=5, n=DRAWS):
    """Values [n] and gradients, leaves [n, ...], of a loss on two examples and one of padding."""
    batch = batch_of(X[[1, 6, 3]]) | {"mask": MASK}
    keys = jax.random.split(jax.random.key(seed), n)
    one = jax.value_and_grad(lambda p, key: loss.apply(p, carry, key, batch)[0])
    return jax.jit(jax.vmap(one, (None, 0)))(params, keys)


def assert_means(found, expected):
    """The mean of [n, ...] is what is expected, within its standard errors, and they are small."""
    found, expected = (
        np.concatenate([np.asarray(leaf).reshape(n, -1) for leaf in leaves], axis=1)
        for n, leaves in ((len(jax.tree.leaves(found)[0]), jax.tree.leaves(found)), (1, jax.tree.leaves(expected)))
    )
    stderr = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.linalg.norm(stderr) < 0.1 * np.linalg.norm(expected)
    sigmas = np.abs(found.mean(0) - expected[0]) / np.maximum(stderr, 1e-12)
    assert sigmas.max() < 4, sigmas.max()


def first_carry(loss, params, **changed):
    carry = loss.init(params, jax.random.key(6), batch_of(X[:3]))
    return carry | changed if changed else carry


ESTIMATORS = {
    "no baseline": (lambda model: discrete.score_function(model, "none"), 1),
    "running mean": (lambda model: discrete.score_function(model, "mean"), 1),
    "learned baseline": (lambda model: discrete.score_function(model, "input", hidden=5), 1),
    "vimco, three draws": (lambda model: discrete.vimco(model, 3), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "estimator"),
    [*(("sbn", name) for name in ESTIMATORS), ("categorical", "no baseline"), ("categorical", "vimco, three draws")],
)
def test_value_and_gradient_are_those_of_the_sum_over_all_draws(name, estimator):
    model, params, z = subject(name)
    make, k = ESTIMATORS[estimator]
    loss = make(model)
    carry = first_carry(loss, params, **({"mean": jnp.asarray(-1.7)} if k == 1 and estimator != "no baseline" else {}))
    batch = batch_of(X[[1, 6]])
    exact = jax.jit(jax.value_and_grad(lambda p: -exact_bound(model, p, z, batch, k)))(params)
    assert_means(estimates(loss, params, carry), exact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recognition", "k"), [("sbn", "wake", 3), ("sbn", "sleep", 1), ("categorical", "both", 2)]
)
def test_wake_sleep_is_the_sum_over_all_draws(name, recognition, k):
    """Its value is the bound; its gradient that of the bound in theta, and in phi of what it lowers with k draws."""
    model, params, z = subject(name)
    batch = batch_of(X[[1, 6]])
    values, grads = estimates(discrete.reweighted_wake_sleep(model, k, recognition), params, ())
    exact = jax.jit(lambda p: -exact_bound(model, p, z, batch, k))
    assert_means(values, exact(params))
    assert_means(grads, jax.jit(jax.grad(lambda p: exact_wake_sleep(model, p, z, batch, k, recognition)))(params))


@pytest.mark.slow
def test_without_a_score_the_gradient_is_wrong():
    """What the tests above would say of a loss that takes discrete draws for reparametrised ones."""
    model, params, z = subject("sbn")
    exact = jax.jit(jax.grad(lambda p: -exact_bound(model, p, z, batch_of(X[[1, 6]]), 1)))(params)
    _, grads = estimates(variational.elbo(model), params, ())
    with pytest.raises(AssertionError):
        assert_means(grads, exact)
    others = [name for name in params if not name.startswith("encoder")]
    assert_means({name: grads[name] for name in others}, {name: exact[name] for name in others})


def spread(grads):
    """The variance of the recognition net's gradient, summed over its parameters."""
    return sum(float(leaf.var(0).sum()) for name in grads if "encoder" in name for leaf in jax.tree.leaves(grads[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sbn", "categorical"])
def test_baselines_lower_the_variance(name):
    """VIMCO with k draws has less than the mean of k estimates without a baseline; so has each better baseline."""
    model, params, _ = subject(name)
    batch = batch_of(X[[1, 6, 3]]) | {"mask": MASK}
    found = {}
    for baseline in discrete.BASELINES:
        loss = discrete.score_function(model, baseline, normalize=False, learning_rate=1e-2, hidden=20)

        def train(carry, key, loss=loss):
            return loss.apply(params, carry, key, batch)[1].carry, None

        keys = jax.random.split(jax.random.key(7), 1000)
        carry, _ = jax.jit(lambda carry, keys, train=train: jax.lax.scan(train, carry, keys))(
            first_carry(loss, params), keys
        )
        found[baseline] = spread(estimates(loss, params, carry, n=4000)[1])
    k = 4
    found["vimco"] = k * spread(estimates(discrete.vimco(model, k), params, (), n=4000)[1])
    assert found["vimco"] < 0.5 * found["none"], found
    assert found["input"] < 0.95 * found["mean"] < 0.95**2 * found["none"], found


def test_normalisation_divides_the_recognition_net_s_gradient_alone():
    model, params, _ = subject("sbn")
    loss, batch, key = discrete.score_function(model, "mean"), batch_of(X), jax.random.key(8)
    grad = jax.jit(jax.grad(lambda p, carry: loss.apply(p, carry, key, batch)[0]))
    carry = {"mean": jnp.asarray(-2.0), "signal": jnp.asarray(3.0), "square": jnp.asarray(9.3)}
    one, other = grad(params, carry), grad(params, carry | {"square": jnp.asarray(25.0)})
    for name in one:
        ratio = 4 if name.startswith("encoder") else 1
        jax.tree.map(lambda a, b, r=ratio: np.testing.assert_allclose(a, r * b, rtol=1e-9), one[name], other[name])


@pytest.mark.slow
def test_elbo_is_logged_as_the_bound_on_minus_log_p_that_evaluation_reports():
    model, params, _ = subject("sbn")
    batch, key = batch_of(X), jax.random.key(10)
    expected = -log_weights(model.draw, model.log_joint, params, key, batch, 3).mean()
    for loss in (variational.iwae(model, 3), discrete.vimco(model, 3), discrete.reweighted_wake_sleep(model, 3)):
        _, out = jax.jit(loss.apply)(params, (), key, batch)
        np.testing.assert_allclose(out.metrics["elbo"], expected, rtol=1e-9)


def test_baselines_are_kept_in_the_carry_and_see_no_padding():
    model, params, _ = subject("sbn")
    loss, key = discrete.score_function(model, "input", decay=0.75), jax.random.key(9)
    batch = batch_of(X[[1, 6, 3]]) | {"mask": MASK}
    carry = first_carry(loss, params)
    apply = jax.jit(loss.apply)
    _, out = apply(params, carry, key, batch)
    log_w = jax.jit(lambda: log_weights(model.draw, model.log_joint, params, key, batch, 1)[0])()
    np.testing.assert_allclose(out.carry["mean"], 0.25 * masked_mean(log_w, MASK), rtol=1e-9)
    np.testing.assert_allclose(-out.metrics["loss"], masked_mean(log_w, MASK), rtol=1e-9)
    _, other = apply(params, carry, key, batch | {"x": batch["x"].at[2].set(1 - X[3])})
    jax.tree.map(np.testing.assert_array_equal, out.carry, other.carry)
    np.testing.assert_allclose(out.carry["square"], 0.75 + 0.25 * out.metrics["signal"], rtol=1e-9)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, out.carry["net"], carry["net"]))) > 0


def test_what_is_kept_of_a_batch_is_the_mean_of_what_is_kept_of_its_parts():
    """Of the same draws, under masks that part them: micro-batches and devices change nothing."""
    model, params, _ = subject("sbn")
    loss, key = discrete.score_function(model, "mean"), jax.random.key(9)
    batch = batch_of(X[[1, 6, 3]])
    carry = first_carry(loss, params, mean=jnp.asarray(-1.7))
    apply = jax.jit(loss.apply)
    whole, two, one = (
        apply(params, carry, key, batch | {"mask": jnp.asarray(mask)})[1].carry
        for mask in ([1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    )
    jax.tree.map(lambda w, a, b: np.testing.assert_allclose(w, (2 * a + b) / 3, rtol=1e-9), whole, two, one)


def test_leave_one_out_bounds():
    rng = np.random.default_rng(10)
    log_w = 3 * rng.normal(size=(4, 5))
    expected = np.empty_like(log_w)
    for i in range(4):
        changed = log_w.copy()
        changed[i] = np.delete(log_w, i, axis=0).mean(0)
        expected[i] = scipy.special.logsumexp(changed, axis=0) - np.log(4)
    found = jax.jit(discrete.leave_one_out)(jnp.asarray(log_w))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isfinite(jax.jit(discrete.leave_one_out)(1e4 * jnp.asarray(log_w))).all()


def test_what_objectives_refuse():
    model = subject("sbn")[0]
    with pytest.raises(ValueError, match="vimco takes k >= 2"):
        discrete.vimco(model, 1)
    with pytest.raises(ValueError, match="k >= 2 draws for each example, not 1"):
        discrete.reweighted_wake_sleep(model, 1, "both")
    with pytest.raises(ValueError, match="unknown recognition 'dream'"):
        discrete.reweighted_wake_sleep(model, 5, "dream")
    with pytest.raises(ValueError, match="unknown baseline 'x'"):
        discrete.score_function(model, "x")
    with pytest.raises(ValueError, match="a temperature is positive, not 0"):
        discrete.concrete(model, temperature=0.0)
    with pytest.raises(ValueError, match="unknown relaxation 'hard'; one of concrete, soft, straight_through"):
        discrete.concrete(model, kind="hard")
    with pytest.raises(TypeError, match="'concrete' needs the capability 'relax'"):
        discrete.concrete(vae.make(shape=(3,)))


# relaxations


def test_binary_concrete_density():
    for temperature, logit in ((0.3, 1.2), (2.0, -0.4)):
        y = np.linspace(-120, 120, 200_001)
        density = np.exp(units.relaxed_binary(temperature, "concrete").log_prob(jnp.asarray(y), jnp.asarray(logit)))
        step = y[1] - y[0]
        np.testing.assert_allclose(density.sum() * step, 1, rtol=1e-6)
        np.testing.assert_allclose(density[y > 0].sum() * step, scipy.special.expit(logit), rtol=1e-2)


def test_one_hot_concrete_density():
    """Over y_k - y_K it integrates to one, and where y_k is the largest to the probability of category k."""
    logits = np.array([0.7, -0.5, 0.1])
    axis = np.linspace(-40, 40, 1601)
    t = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    y = scipy.special.log_softmax(np.concatenate([t, np.zeros((len(t), 1))], axis=1), -1)
    density = np.exp(units.relaxed_one_hot(0.6, "concrete").log_prob(jnp.asarray(y), jnp.broadcast_to(logits, y.shape)))
    cell = (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(density.sum() * cell, 1, rtol=1e-6)
    shares = np.bincount(y.argmax(-1), density * cell)
    np.testing.assert_allclose(shares, scipy.special.softmax(logits), atol=0.01)


@pytest.mark.slow
def test_binary_draws_are_right_in_the_tails():
    """At a logit of -30 one in ten million million draws is 1; of uniform numbers of 23 digits one in eight million."""
    with jax.enable_x64(False):

        @jax.jit
        def rarer(key, logit):
            z = units.binary().draw(key, jnp.full(2**20, logit))
            return (z != (logit > 0)).sum()

        def count(logit, times):
            return sum(int(rarer(key, logit)) for key in jax.random.split(jax.random.key(0), times))

        assert count(-30.0, 24) == 0
        expected = 2**22 / (1 + np.exp(9.0))
        for logit in (-9.0, 9.0):
            assert count(logit, 4) == pytest.approx(expected, abs=4 * np.sqrt(expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sbn", "categorical"])
def test_concrete_models_are_models(name):
    """Their weights have the mean p(x), which sums to one, and which their samples have."""
    model, params, _ = subject(name)
    relaxed, n = model.relax(0.7), 10_000
    weights = jax.jit(lambda key: log_weights(relaxed.draw, relaxed.log_joint, params, key, batch_of(X), n))
    w = np.exp(weights(jax.random.key(14)))
    stderr = w.std(0) / np.sqrt(n)
    assert abs(w.mean(0).sum() - 1) < 4 * np.linalg.norm(stderr) < 0.1
    x = jax.jit(relaxed.sample, static_argnums=2)(params, jax.random.key(15), n)
    shares = np.bincount(np.asarray(x, int) @ [4, 2, 1], minlength=8) / n
    assert (np.abs(shares - w.mean(0)) < 4 * np.hypot(stderr, np.sqrt(shares / n))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sbn", "categorical"])
def test_relaxed_bounds_near_the_discrete_one(name):
    """Soft draws reach it as the temperature falls; straight-through has it at any; that of Concrete stays below."""
    model, params, z = subject(name)
    exact = -jax.jit(lambda p: exact_bound(model, p, z, batch_of(X[[1, 6]]), 1))(params)
    found = {}
    for kind, temperature in (("soft", 0.01), ("straight_through", 2.0), ("concrete", 0.01)):
        loss = discrete.concrete(model, temperature=temperature, least=0.01, kind=kind)
        found[kind] = estimates(loss, params, (), n=4000)[0]
    assert_means(found["soft"], exact)
    assert_means(found["straight_through"], exact)
    assert found["concrete"].mean() > exact + 0.1


def test_straight_through_draws_are_discrete_and_have_the_gradient_of_soft_ones():
    logits, key = jnp.asarray([[0.3, -1.0, 0.5]]), jax.random.key(11)
    for make in (units.relaxed_binary, units.relaxed_one_hot):
        hard, soft = make(0.7, "straight_through").draw, make(0.7, "soft").draw
        assert set(np.unique(hard(key, logits))) <= {0.0, 1.0}
        through, relaxed = (jax.jacobian(lambda l, draw=draw: draw(key, l))(logits) for draw in (hard, soft))
        np.testing.assert_allclose(through, relaxed, rtol=1e-9)
        assert np.abs(relaxed).max() > 0.01


@pytest.mark.slow
def test_temperature_falls_once_a_step_whatever_the_micro_batches():
    model, _, _ = subject("categorical")
    loss = discrete.concrete(model, temperature=1.0, rate=0.4, least=0.6)
    batch = batch_of(X)
    learner = gradient(model.init, loss, optax.sgd(1e-3), micro=4)
    state, step, found = jax.jit(learner.init)(jax.random.key(12), batch), jax.jit(learner.step), []
    for _ in range(3):
        state, metrics = step(state, jax.random.key(12), batch)
        found.append(metrics["temperature"])
    np.testing.assert_allclose(found, [1, np.exp(-0.4), 0.6], rtol=1e-6)


# learners


@pytest.mark.slow
def test_the_learner_of_a_learned_baseline():
    model = sbn.make(shape=(BITS,), latent=(2,))

    def make(micro):
        return gradient(model.init, discrete.score_function(model, hidden=4), optax.adam(1e-2), micro)

    batch = random_batch(Space((BITS,), values=(0.0, 1.0)), 1, 8)
    checks = verify_learner(make, batch, skip=("jit = no jit", "devices", "micro-batches"))
    assert not [check for check in checks if not check.ok]


@pytest.mark.slow
def test_devices_under_pmap_learn_one_baseline():
    """That of as many micro-batches: the mean of what each makes of the old one."""
    model, n = sbn.make(shape=(BITS,), latent=(2,)), jax.device_count()
    loss, key = discrete.score_function(model, hidden=4), jax.random.key(13)
    batch = random_batch(Space((BITS,), values=(0.0, 1.0)), 1, 2 * n) | {"mask": jnp.arange(2.0 * n) < 11}
    alone = gradient(model.init, loss, optax.sgd(1e-2), micro=n)
    over = over_devices(gradient(model.init, loss, optax.sgd(1e-2), axis=DEVICES), n)
    first = widen(alone.init(key, batch))
    one = other = first
    for _ in range(3):
        one, other = jax.jit(alone.step)(one, key, batch)[0], jax.jit(over.step)(other, key, batch)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, other)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a, float) - b).max(), one.carry, first.carry)
    assert min(jax.tree.leaves(moved)) > 0
