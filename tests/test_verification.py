"""`verify` passes what is healthy, and names what is wrong: a bug of each kind is planted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from dgm_jax import config as configs
from dgm_jax import zoo
from dgm_jax.models.latent import sbn
from dgm_jax.numerics import masked_mean, sum_event
from dgm_jax.objectives import contrastive, discrete, likelihood, variational
from dgm_jax.training.learners import gradient, per_example
from dgm_jax.types import Counts, Learner, Loss, Out
from dgm_jax.verification import (
    Space,
    averages,
    capabilities,
    drawn,
    learners,
    small,
    table,
    verify_learner,
    verify_model,
    verify_objective,
)
from dgm_jax.verification.space import check, random_batch

pytestmark = pytest.mark.slow
BITS = Space((toys.D,), values=(0.0, 1.0))
PLANE = Space((2,))
COUPLED = Space((4,))
COINS = sbn.make(shape=(toys.D,), latent=(3,))


def outcome(checks):
    """(failed, passed): the names of checks."""
    return {c.name for c in checks if c.ok is False}, {c.name for c in checks if c.ok}


def model_of(toy, **bug):
    return {"flow": (toys.flow, PLANE)}.get(toy, (getattr(toys, toy), BITS))[0](**bug)


@pytest.mark.parametrize("message, detail", [("", "raised ValueError"), ("one\ntwo", "raised ValueError: one")])
def test_a_check_that_raises_fails_whatever_it_says(message, detail):
    def raises():
        raise ValueError(message)

    assert check("a name", raises) == ("a name", False, detail)


@pytest.mark.parametrize(
    "name, shape, values",
    [
        ("made_binarized_mnist", (2, 4, 1), (0.0, 1.0)),
        ("rnade_red_wine", (2,), ()),
        ("vae_mnist", (2, 4, 1), (0.0, 1.0)),
    ],
)
def test_data_that_are_known_need_not_be_there(name, shape, values, tmp_path):
    _, space = small(configs.load(name, {"data.dir": str(tmp_path)}, zoo.fill))
    assert (space.shape, space.values) == (shape, values)


def test_other_data_are_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)nltcs.npz.*Only the data say what their events are like"):
        small(configs.load("made_debd", {"data.dir": str(tmp_path)}, zoo.fill))


@pytest.mark.parametrize(
    ("toy", "space", "passes"),
    [
        ("autoregressive", BITS, {"normalised", "causal", "predicts", "sample", "complete"}),
        ("flow", PLANE, {"normalised", "sample"}),
        ("latent", BITS, {"bound", "rates", "dream", "sample", "stages", "observed", "encode, decode"}),
        ("boltzmann", BITS, {"normalised", "gibbs invariant"}),
        ("mixture", BITS, {"normalised", "observed"}),
        ("denoiser", PLANE, {"denoise"}),
    ],
)
def test_a_healthy_model_passes(toy, space, passes):
    failed, passed = outcome(verify_model(getattr(toys, toy)(), space))
    assert not failed
    assert passed == passes | {"model keys used once"}


@pytest.mark.parametrize(
    ("toy", "space", "bug", "fails"),
    [
        ("autoregressive", BITS, {"reach": 0}, {"causal", "normalised", "predicts"}),
        ("autoregressive", BITS, {"reach": -2}, {"causal"}),
        ("autoregressive", BITS, {"offset": 0.01}, {"causal", "normalised", "predicts"}),
        ("autoregressive", BITS, {"drop": True}, {"complete"}),
        ("autoregressive", BITS, {"deaf": True}, {"complete"}),
        ("autoregressive", BITS, {"hope": 0.01}, {"predicts"}),
        ("autoregressive", BITS, {"again": True}, {"model keys used once"}),
        ("flow", PLANE, {"sign": -1.0}, {"normalised", "sample"}),
        ("flow", PLANE, {"drawn": 1.2}, {"sample"}),
        ("latent", BITS, {"above": 0.1}, {"bound", "dream", "observed"}),
        (  # a bug for each of these checks
            "latent",
            BITS,
            {"wide": 1.1, "dear": 1.3, "staged": 1, "hidden": "scored"},
            {"dream", "rates", "stages", "observed"},
        ),
        ("latent", BITS, {"paired": False}, {"dream"}),
        ("latent", BITS, {"scale": 0.0, "posterior": 0.0}, {"bound", "rates"}),
        ("latent", BITS, {"posterior": -1.0}, {"bound"}),
        ("latent", BITS, {"biased_sample": 0.3}, {"sample", "dream"}),
        ("latent", BITS, {"lost": 1}, {"encode, decode"}),
        ("mixture", BITS, {"hidden": "read"}, {"observed"}),
        ("mixture", BITS, {"hidden": "scored"}, {"observed"}),
        ("mixture", BITS, {"even": True}, {"observed"}),
        ("boltzmann", BITS, {"wrong": 0.2}, {"gibbs invariant"}),
        ("boltzmann", BITS, {"still": True}, {"gibbs invariant"}),
        ("boltzmann", BITS, {"partition": 0.01}, {"normalised"}),
        ("denoiser", PLANE, {"timed": False}, {"denoise"}),
    ],
)
def test_a_wrong_model_fails(toy, space, bug, fails):
    failed, _ = outcome(verify_model(getattr(toys, toy)(**bug), space))
    assert failed == fails


@jax.custom_vjp
def louder(x):
    return x


louder.defvjp(lambda x: (x, None), lambda _, g: (1.1 * g,))


def of_terms(f):
    return per_example(lambda params, key, batch: {"loss": f(params, key, batch)})


def mle_of(change):
    """-log p of the autoregressive toy with its parameters changed by `change`."""
    model = toys.autoregressive()
    return of_terms(lambda params, key, batch: -model.log_prob(change(params), key, batch))


def coin_loss(score):
    """E_q[f(h)] over a discrete h ~ q, without or with the score's share of the gradient."""

    def f(params, key, batch):
        logits = batch["x"] @ params["weights"].T + params["bias"][None]
        h = jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)
        cost = sum_event((h - batch["x"][:, ::-1]) ** 2 * (1 + 0.1 * params["bias"][None] ** 2))
        log_q = sum_event(h * logits - jax.nn.softplus(logits))
        share = jax.lax.stop_gradient(cost) * log_q
        return cost + (share - jax.lax.stop_gradient(share)) * score

    return of_terms(f)


def pcd_with(sign):
    """Persistent contrastive divergence whose chains pull with a sign."""
    model = toys.boltzmann()
    healthy = contrastive.pcd(model, k=1, chains=8)

    def apply(params, carry, key, batch):
        _, out = healthy.apply(params, carry, key, batch)
        data = masked_mean(model.energy(params, None, batch), batch.get("mask"))
        return data - sign * jnp.mean(model.energy(params, None, {"x": out.carry["chains"]})), out

    return Loss(healthy.init, apply)


def wake_with(factor):
    """Reweighted wake-sleep whose recognition net is trained with a factor."""
    wake = discrete.reweighted_wake_sleep(COINS, 8).apply

    def apply(params, carry, key, batch):
        held = jax.lax.stop_gradient(params) | {"encoder_0": params["encoder_0"]}
        loss, out = wake(params, carry, key, batch)
        of_q, _ = wake(held, carry, key, batch)
        return loss + (factor - 1) * (of_q - jax.lax.stop_gradient(of_q)), out

    return Loss(lambda params, key, batch: (), apply)


def quiet(model):
    """The model without what `_not_uphill` needs: for losses that are not its likelihood's."""
    return model._replace(log_prob=None)


HEALTHY_OBJECTIVES = {
    "mle": (likelihood.mle(toys.autoregressive()), toys.autoregressive()),
    "elbo": (variational.elbo(toys.latent()), toys.latent()),
    "dreg": (variational.iwae(toys.latent(), k=3, gradient="dreg"), toys.latent()),
    "score": (coin_loss(1.0), quiet(toys.autoregressive())),
    "wake": (discrete.reweighted_wake_sleep(COINS, 8), COINS),
    "wake and sleep": (discrete.reweighted_wake_sleep(COINS, 8, "both"), COINS),
    "cd": (contrastive.cd(toys.boltzmann(), k=1), toys.boltzmann()),
    "pcd": (contrastive.pcd(toys.boltzmann(), k=1, chains=8), toys.boltzmann()),
}
WRONG_OBJECTIVES = {
    "scaled": (mle_of(lambda p: jax.tree.map(louder, p)), toys.autoregressive(), "not that of the loss"),
    "cut": (mle_of(lambda p: p | {"bias": jax.lax.stop_gradient(p["bias"])}), toys.autoregressive(), "not that of"),
    "uphill": (of_terms(toys.autoregressive().log_prob), toys.autoregressive(), "slope"),
    "no score": (coin_loss(0.0), quiet(toys.autoregressive()), "discrete draws"),
    "stl, three draws": (variational.iwae(toys.latent(), k=3, gradient="stl"), toys.latent(), "biased by design"),
    "no score of q": (variational.elbo(COINS), COINS, "in the rest off"),
    "straight-through": (discrete.concrete(COINS, temperature=4.0, kind="straight_through"), COINS, "in the rest off"),
    "uphill wake": (wake_with(-1.0), COINS, "in the rest off"),
    "loud wake": (wake_with(2.0), COINS, "in the rest off"),
    "half the chains": (pcd_with(0.5), toys.boltzmann(), "not that of -log p"),
}


@pytest.mark.parametrize("name", HEALTHY_OBJECTIVES)
def test_a_right_gradient_passes(name):
    failed, passed = outcome(verify_objective(*HEALTHY_OBJECTIVES[name], BITS))
    assert not failed
    assert passed == {"gradient", "padding"}


@pytest.mark.parametrize("name", WRONG_OBJECTIVES)
def test_a_wrong_gradient_fails(name):
    objective, model, why = WRONG_OBJECTIVES[name]
    checks = verify_objective(objective, model, BITS)
    assert outcome(checks)[0] == {"gradient"}
    assert why in checks[0].detail


@jax.custom_vjp
def lost(x, noise):
    return x


lost.defvjp(lambda x, noise: (x, noise), lambda noise, g: (1e3 * noise * g, None))


def test_a_gradient_that_noise_hides_is_not_called_right(monkeypatch):
    """The loss is -log p; its gradient is nothing but noise."""
    monkeypatch.setattr(averages, "MANY", 64)
    model = toys.autoregressive()

    def f(params, key, batch):
        noise = jax.random.normal(key, (2,))
        heard = {"weights": lost(params["weights"], noise[0]), "bias": lost(params["bias"], noise[1])}
        return -model.log_prob(heard, key, batch)

    (found,) = [check for check in verify_objective(of_terms(f), model, BITS) if check.name == "gradient"]
    assert found.ok is None and "spread too far to tell" in found.detail


def test_padding_that_counts_fails():
    def apply(params, carry, key, batch):
        loss = -jnp.mean(toys.autoregressive().log_prob(params, key, batch))
        return loss, Out({"loss": loss})

    loss = Loss(lambda params, key, batch: (), apply)
    assert outcome(verify_objective(loss, toys.autoregressive(), BITS))[0] == {"padding"}


def test_padding_that_is_counted_fails():
    """What it holds is left out of the sum, and it is counted all the same."""
    model = toys.autoregressive()

    def apply(params, carry, key, batch):
        nll = -model.log_prob(params, key, batch)
        loss = jnp.mean(jnp.where(batch["mask"] != 0, nll, 0) if "mask" in batch else nll)
        return loss, Out({"loss": loss})

    loss = Loss(lambda params, key, batch: (), apply)
    assert outcome(verify_objective(loss, model, BITS))[0] == {"padding"}


def test_draws_agree_with_rare_and_impossible_states():
    rng = np.random.default_rng(0)
    for p in ([0.0, 0.5, 0.5, 0.0], [2e-6, 0.3, 0.3, 0.4 - 2e-6], [1e-3] * 400 + [0.6], [1.0]):
        draws = [rng.choice(len(p), 5000, p=p) for _ in range(500)]
        assert all(drawn.agrees(index, np.array(p))[0] for index in draws)
    assert not drawn.agrees(np.array([1] * 4999 + [0]), np.array([0.0, 1.0]))[0]
    assert not drawn.agrees(rng.choice(3, 5000, p=[0.36, 0.32, 0.32]), np.array([0.3, 0.35, 0.35]))[0]


@pytest.mark.parametrize("name", ["prior", "rate_distortion", "expect", "decode"])
def test_a_key_that_any_function_uses_twice_is_found(name):
    def twice(params, key, *_):
        return jax.random.normal(key, (4, 8)) + jax.random.normal(key, (4, 8))

    model = toys.autoregressive()._replace(encode=lambda params, key, batch: batch["x"])
    ok, detail = capabilities.keys_used_once(model._replace(**{name: twice}), BITS, 0)
    assert not ok and detail.startswith(name)


@pytest.mark.parametrize(
    ("bug", "fails"),
    [
        ({}, set()),
        ({"sharpness": 2.0}, {"EM ascends"}),
        ({"mean": True}, {"EM ascends", "padding"}),
        ({"ignore_mask": True}, {"padding"}),
    ],
)
def test_em(bug, fails):
    model = toys.mixture(**bug)
    failed, passed = outcome(verify_objective(Counts(model.expect, model.maximize), model, BITS))
    assert failed == fails
    assert passed == {"padding", "EM ascends"} - fails


def learner_of(loss=None, model=None, tx=None):
    """micro -> a learner; by default of maximum likelihood, by Adam."""
    model, tx = model or toys.autoregressive(), tx or optax.adam(1e-2)
    return lambda micro: gradient(model.init, loss or likelihood.mle(model), tx, micro)


def with_step(change, loss=None, tx=None):
    """The same, with `change(step)` for its step."""

    def make(micro):
        learner = learner_of(loss, tx=tx)(micro)
        return learner._replace(step=change(learner.step))

    return make


def noisy(draw):
    """Maximum likelihood plus draw(key), to be used by a learner."""
    model = toys.autoregressive()
    return of_terms(lambda params, key, batch: draw(key) * params["bias"].sum() - model.log_prob(params, key, batch))


def same_key(key):
    return jax.random.normal(key) + jax.random.uniform(key)


def equal_folds(key):
    return jax.random.normal(jax.random.fold_in(key, 3)) + jax.random.uniform(jax.random.fold_in(key, 3))


def drawn_and_folded(key):
    return jax.random.normal(key) + jax.random.uniform(jax.random.fold_in(key, 3))


def in_a_loop(key):
    return jax.lax.scan(lambda total, _: (total + jax.random.normal(key), None), 0.0, jnp.arange(3.0))[0]


def over_a_batch(key):
    return jax.vmap(jax.random.normal)(jnp.stack([key, key])).sum()


def same_every_step(step):
    def changed(state, key, batch):
        new, metrics = step(state._replace(step=jnp.zeros_like(state.step)), key, batch)
        return new._replace(step=state.step + 1), metrics

    return changed


def forgotten_chains():
    """PCD that never keeps its chains' moves."""
    healthy = contrastive.pcd(toys.boltzmann(), k=1, chains=8)

    def apply(params, carry, key, batch):
        loss, out = healthy.apply(params, carry, key, batch)
        return loss, out._replace(carry=carry)

    return learner_of(Loss(healthy.init, apply), toys.boltzmann())


def chains_in_a_closure():
    """PCD that keeps its chains in a Python variable, where the first call's tracer stays."""
    model = toys.boltzmann()

    def make(micro):
        chains = jnp.zeros((8, toys.D))

        def apply(params, carry, key, batch):
            nonlocal chains
            chains = model.gibbs(jax.lax.stop_gradient(params), key, chains)
            loss = jnp.mean(model.energy(params, None, batch)) - jnp.mean(model.energy(params, None, {"x": chains}))
            return loss, Out({"loss": loss})

        return learner_of(Loss(lambda params, key, batch: (), apply), model)(micro)

    return make


def chains_on_the_host():
    """PCD that keeps its chains in numpy, behind callbacks."""
    model = toys.boltzmann()

    def make(micro):
        memory = [np.zeros((8, toys.D))]

        def exchange(moved=None):
            memory[0] = memory[0] if moved is None else np.asarray(moved)
            return memory[0]

        def step(state, key, batch):
            like = jax.ShapeDtypeStruct((8, toys.D), batch["x"].dtype)
            old = jax.experimental.io_callback(exchange, like)
            chains = model.gibbs(state.params, jax.random.fold_in(key, state.step), old)
            jax.experimental.io_callback(exchange, like, chains)
            params = state.params | {"b": 0.9 * state.params["b"] + 0.1 * chains.mean(0)}
            return state._replace(step=state.step + 1, params=params), {"loss": chains.sum(), "finite": jnp.ones(())}

        return Learner(learner_of(of_terms(model.energy), model)(micro).init, step)

    return make


def other_dtype(step):
    def changed(state, key, batch):
        state, metrics = step(state, key, batch)
        return state._replace(params=state.params | {"bias": state.params["bias"].astype(jnp.float16)}), metrics

    return changed


def weakly_typed(micro):
    """Its carry is weakly typed at first and strongly after: no shape nor dtype changes, and jit compiles twice."""
    learner = learner_of()(micro)

    def init(key, batch):
        return learner.init(key, batch)._replace(carry=jnp.asarray(1.0))

    def step(state, key, batch):
        new, metrics = learner.step(state, key, batch)
        return new._replace(carry=state.carry * jnp.ones((), state.carry.dtype)), metrics

    return Learner(init, step)


def otherwise_compiled(step):
    def changed(state, key, batch):
        try:
            float(batch["x"].sum())
            batch = batch | {"x": 1 - batch["x"]}
        except jax.errors.ConcretizationTypeError:
            pass
        return step(state, key, batch)

    return changed


@jax.custom_batching.custom_vmap
def centred(x):
    return x - x.mean()


@centred.def_vmap
def _(size, batched, x):
    return x - x.mean(), True  # over all seeds, not in each


def over_all_seeds(step):
    def changed(state, key, batch):
        state, metrics = step(state, key, batch)
        return state._replace(params=state.params | {"bias": centred(state.params["bias"])}), metrics

    return changed


def summed(micro):
    model = toys.autoregressive()

    def apply(params, carry, key, batch):
        loss = -model.log_prob(params, key, batch).sum()
        return loss, Out({"loss": loss})

    return gradient(model.init, Loss(lambda params, key, batch: (), apply), optax.sgd(1e-2), micro)


def root_at_zero(params, key, batch):
    return jnp.sqrt(params["bias"] ** 2).sum() + 0 * batch["x"][:, 0]


LEARNERS = {
    "mle": (learner_of(), set()),
    "pcd": (learner_of(contrastive.pcd(toys.boltzmann(), k=2, chains=8), toys.boltzmann()), set()),
    "same key": (learner_of(noisy(same_key)), {"keys used once"}),
    "equal folds": (learner_of(noisy(equal_folds)), {"keys used once"}),
    "drawn and folded": (learner_of(noisy(drawn_and_folded)), {"keys used once"}),
    "in a loop": (learner_of(noisy(in_a_loop)), {"keys used once"}),
    "over a batch": (learner_of(noisy(over_a_batch)), {"keys used once"}),
    "same every step": (with_step(same_every_step, noisy(jax.random.normal)), {"keys used once"}),
    "forgotten chains": (forgotten_chains(), {"memory is saved"}),
    "chains in a closure": (chains_in_a_closure(), {"memory is saved"}),
    "chains on the host": (chains_on_the_host(), {"memory is saved"}),
    "dtype": (with_step(other_dtype), {"keeps its form"}),
    "weak type": (weakly_typed, {"compiles once"}),
    "otherwise compiled": (with_step(otherwise_compiled), {"jit = no jit"}),
    "over all seeds": (with_step(over_all_seeds, noisy(jax.random.normal), optax.sgd(0.1)), {"seeds"}),
    "summed": (summed, {"micro-batches"}),
    "not finite": (learner_of(of_terms(root_at_zero)), {"finite"}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_learner(name):
    make, fails = LEARNERS[name]
    with jax.enable_x64(True):
        batch = random_batch(BITS, 0, 8)
        checks = verify_learner(make, batch)
    failed, passed = outcome(checks)
    assert failed == fails, table(checks)
    if not fails:
        assert passed == {check.name for check in checks}


def test_devices_that_drift_apart_fail(monkeypatch):
    split = learners.fully_sharded

    def drifting(learner, mesh, small):
        learner = split(learner, mesh, small=small)

        def step(state, key, batch):
            state, metrics = learner.step(state, key, batch)
            return state._replace(params=jax.tree.map(lambda p: p * (1 + 1e-5), state.params)), metrics

        return learner._replace(step=step)

    monkeypatch.setattr(learners, "fully_sharded", drifting)
    with jax.enable_x64(True):
        run = learners.run(learner_of(), random_batch(BITS, 0, 8), jax.random.key(0))
        same, differing = learners.devices(run)
    assert not same and "params/bias" in differing
