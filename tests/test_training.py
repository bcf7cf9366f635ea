"""The learners against hand-written updates, and the loop: resuming, diverging, stopping."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from logs import numbers

from dgm_jax.numerics import masked_mean
from dgm_jax.training import checkpoint, hooks, loop, parallel
from dgm_jax.training.learners import averaged_params, em, game, gradient, per_example, trainable
from dgm_jax.training.wrappers import DEVICES, gathered, over_devices, scan_steps, transformed, with_ema, with_seeds
from dgm_jax.types import Loss, Out, Player

KEY = jax.random.key(0)


def quadratic(params, key, batch):
    """(w - x)^2 / 2 for each example: the gradient is w minus the mean of x."""
    return {"loss": 0.5 * (params["w"] - batch["x"]) ** 2}


def init(key, batch):
    return {"w": jnp.asarray(2.0)}


def batch_of(*x, mask=None):
    batch = {"x": jnp.asarray(x, jnp.float32)}
    return batch if mask is None else batch | {"mask": jnp.asarray(mask, jnp.float32)}


def test_a_loss_that_is_averaged_already_is_refused():
    learner = gradient(init, per_example(lambda *a: {"loss": quadratic(*a)["loss"].mean()}), optax.sgd(0.5))
    with pytest.raises(AssertionError, match="one number an example"):
        learner.step(learner.init(KEY, batch_of(1.0, 3.0)), KEY, batch_of(1.0, 3.0))


def test_gradient_takes_the_step_of_its_optimizer():
    learner = gradient(init, per_example(quadratic), optax.sgd(0.5))
    batch = batch_of(1.0, 3.0, 5.0, mask=[1, 0, 1])
    state, metrics = learner.step(learner.init(KEY, batch), KEY, batch)
    np.testing.assert_allclose(state.params["w"], 2.0 - 0.5 * (2.0 - 3.0))
    np.testing.assert_allclose(metrics["loss"], (0.5 + 4.5) / 2)
    np.testing.assert_allclose(metrics["grad_norm"], 1.0)
    assert metrics["finite"] == 1 and state.step == 1


def test_micro_batches_weigh_by_their_unmasked_examples():
    batch = batch_of(1.0, 2.0, 7.0, 9.0, mask=[1, 1, 1, 0])
    whole = gradient(init, per_example(quadratic), optax.sgd(0.5))
    parts = gradient(init, per_example(quadratic), optax.sgd(0.5), micro=2)
    (a, m), (b, n) = (learner.step(learner.init(KEY, batch), KEY, batch) for learner in (whole, parts))
    np.testing.assert_allclose(a.params["w"], b.params["w"], rtol=1e-6)
    np.testing.assert_allclose(m["loss"], n["loss"], rtol=1e-6)


def test_micro_batches_split_chains_and_average_the_rest_of_the_carry():
    def apply(params, carry, key, batch):
        mean = carry["mean"] + 0.5 * (masked_mean(batch["x"], batch["mask"]) - carry["mean"])
        carry = {"chains": carry["chains"] + 1, "count": carry["count"] + 1, "mean": mean}
        return params["w"] * carry["chains"].mean(), Out({"loss": params["w"]}, carry)

    def first(params, key, batch):
        return {"chains": jnp.arange(6.0), "count": jnp.asarray(0), "mean": jnp.asarray(8.0)}

    learner = gradient(init, Loss(first, apply), optax.sgd(0.0), micro=3)
    batch = batch_of(*range(6), mask=[1, 1, 1, 0, 0, 0])
    state, _ = learner.step(learner.init(KEY, batch), KEY, batch)
    np.testing.assert_array_equal(state.carry["chains"], jnp.arange(6.0) + 1)
    assert state.carry["count"] == 1 and state.carry["mean"] == 8 + 0.5 * (1 - 8)  # as of the whole batch
    padding = batch_of(*range(6), mask=[0] * 6)
    assert learner.step(state, KEY, padding)[0].carry["mean"] == 0.5 * state.carry["mean"]
    with pytest.raises(ValueError, match="5 examples or chains"):
        learner.step(learner.init(KEY, batch), KEY, batch_of(*range(5)))


def test_micro_batches_draw_different_noise():
    def noisy(params, key, batch):
        return {"loss": params["w"] * 0 + jax.random.normal(key, batch["x"].shape) * batch["x"]}

    batch = batch_of(1.0, -1.0)  # cancels where both micro-batches have the same key
    learner = gradient(init, per_example(noisy), optax.sgd(0.0), micro=2)
    assert learner.step(learner.init(KEY, batch), KEY, batch)[1]["loss"] != 0


def test_buffers_are_the_loss_s_own():
    def apply(params, carry, key, batch):
        mean = batch["x"].mean()
        return params["w"] * mean, Out({"loss": mean}, carry, {"mean": mean})

    loss = Loss(lambda params, key, batch: (), apply)
    params = {"w": jnp.asarray(2.0), "buffers": {"mean": jnp.asarray(0.0)}}
    learner = with_ema(gradient(lambda key, batch: params, loss, optax.adam(0.1)), 0.9)
    batch = batch_of(1.0, 3.0)
    state, _ = learner.step(learner.init(KEY, batch), KEY, batch)
    assert state.params["buffers"]["mean"] == 2.0
    assert "buffers" not in state.ema and "buffers" not in trainable(state.params)
    assert averaged_params(state)["buffers"]["mean"] == 2.0
    assert len(jax.tree.leaves(state.opt)) == 3  # the count and two moments of w alone
    for parts in (  # each makes its own of the same old ones, and they are averaged
        gradient(lambda key, batch: params, loss, optax.adam(0.1), micro=2),
        over_devices(gradient(lambda key, batch: params, loss, optax.adam(0.1), axis=DEVICES), 2),
    ):
        assert parts.step(parts.init(KEY, batch), KEY, batch)[0].params["buffers"]["mean"] == 2.0


@pytest.mark.parametrize("in_a_game", [False, True])
def test_a_loss_updates_itself_from_the_whole_batch_once_a_step(in_a_game):
    def own(params):
        return params["f"] if in_a_game else params

    def apply(params, carry, key, batch):
        value = own(params)["w"] * batch["x"].mean()
        return value, Out({"loss": value}, carry, examples={"x": batch["x"]})

    def update(params, carry, key, examples):
        mean = examples["x"].mean() + own(params)["buffers"]["mean"]
        return Out({"seen": jnp.asarray(float(len(examples["x"])))}, carry + 1, {"mean": mean})

    loss = Loss(lambda params, key, batch: jnp.asarray(0), apply, update)
    params = {"w": jnp.asarray(2.0), "buffers": {"mean": jnp.asarray(0.0)}}
    if in_a_game:
        learner = game(lambda key, batch: {"f": params}, {"f": Player(loss, optax.sgd(1.0))}, micro=3)
    else:
        learner = gradient(lambda key, batch: params, loss, optax.sgd(1.0), micro=3)
    batch = batch_of(*range(6))
    state = learner.init(KEY, batch)
    for step in (1, 2):
        state, metrics = learner.step(state, KEY, batch)
        assert own(state.params)["buffers"]["mean"] == 2.5 * step and own(state.params)["w"] == 2 - 2.5 * step
    assert metrics["f/seen" if in_a_game else "seen"] == 6
    assert (state.carry["f"] if in_a_game else state.carry) == 2


def test_players_take_turns_and_see_each_other():
    """f descends (f - g)^2 / 2; g then descends (g - f)^2 / 2 with the new f, at every second step."""

    def toward(own, other):
        def apply(params, carry, key, batch):
            value = 0.5 * (params[own]["w"] - params[other]["w"]) ** 2
            return value, Out({"loss": value}, carry)

        return Loss(lambda params, key, batch: (), apply)

    players = {
        "f": Player(toward("f", "g"), optax.sgd(0.5)),
        "g": Player(toward("g", "f"), optax.sgd(0.5), every=2),
    }
    learner = game(lambda key, batch: {"f": {"w": jnp.asarray(0.0)}, "g": {"w": jnp.asarray(8.0)}}, players)
    state = learner.init(KEY, batch_of(0.0))
    state, metrics = learner.step(state, KEY, batch_of(0.0))
    assert state.params == {"f": {"w": 4.0}, "g": {"w": 6.0}}
    state, metrics = learner.step(state, KEY, batch_of(0.0))
    assert state.params == {"f": {"w": 5.0}, "g": {"w": 6.0}}
    assert jnp.isnan(metrics["g/loss"]) and metrics["f/loss"] == 2.0 and metrics["finite"] == 1
    with pytest.raises(ValueError, match="cannot be played"):
        game(init, players).init(KEY, batch_of(0.0))


def counts(params, key, batch):
    n = batch["x"].shape[0]
    return {"sum": batch["x"].sum(), "n": jnp.asarray(float(n))}, jnp.zeros(n) - params["w"]


def test_em_sums_over_a_pass_or_blends():
    def maximize(statistics):
        return {"w": statistics["sum"] / statistics["n"]}

    batches = [batch_of(1.0, 2.0), batch_of(3.0, 6.0)]
    learner = em(init, counts, maximize, every=2)
    state = learner.init(KEY, batches[0])
    state, _ = learner.step(state, KEY, batches[0])
    assert state.params["w"] == 2.0
    state, _ = learner.step(state, KEY, batches[1])
    assert state.params["w"] == 3.0 and state.carry["sums"]["n"] == 0

    learner = em(init, counts, maximize, rate=lambda t: (t + 1.0) ** -1.0)
    state = learner.init(KEY, batches[0])
    for batch in batches:
        state, _ = learner.step(state, KEY, batch)
    assert state.params["w"] == 3.0  # the rate 1/t averages all batches alike


def test_ema_is_the_recursion():
    learner = with_ema(gradient(init, per_example(quadratic), optax.sgd(0.1)), 0.5)
    state = learner.init(KEY, batch_of(1.0))
    average = float(state.params["w"])
    for t in range(1, 20):
        state, _ = learner.step(state, KEY, batch_of(1.0))
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * float(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)


def test_scanned_steps_are_the_steps():
    learner = gradient(init, per_example(quadratic), optax.adam(0.1))
    stacked = {"x": jnp.arange(12.0).reshape(4, 3)}
    alone = learner.init(KEY, batch_of(0.0, 1.0, 2.0))
    losses = []
    for x in stacked["x"]:
        alone, metrics = jax.jit(learner.step)(alone, KEY, {"x": x})
        losses.append(metrics["loss"])
    scanned = scan_steps(learner, 4)
    together, metrics = jax.jit(scanned.step)(scanned.init(KEY, stacked), KEY, stacked)
    np.testing.assert_allclose(together.params["w"], alone.params["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-6)
    assert metrics["finite"] == 1


def test_scanned_steps_report_the_first_bad_one():
    learner = scan_steps(gradient(init, per_example(quadratic), optax.sgd(0.1)), 4)
    batches = {"x": jnp.asarray([[1.0], [2.0], [jnp.inf], [3.0]])}
    _, metrics = learner.step(learner.init(KEY, batches), KEY, batches)
    assert metrics["finite"] == 0.5 and not jnp.isfinite(metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [True, False])
def test_seeds_together_are_seeds_alone(vectorize):
    def noisy(params, key, batch):
        return {"loss": 0.5 * (params["w"] - batch["x"] - jax.random.normal(key, batch["x"].shape)) ** 2}

    def random_init(key, batch):
        return {"w": jax.random.normal(key)}

    learner = gradient(random_init, per_example(noisy), optax.adam(0.1))
    both = with_seeds(learner, 2, vectorize)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    batch = batch_of(1.0, 2.0)
    state = both.init(keys, batch)
    for _ in range(3):
        state, metrics = both.step(state, keys, batch)
    for seed in range(2):
        alone = learner.init(keys[seed], batch)
        for _ in range(3):
            alone, own = learner.step(alone, keys[seed], batch)
        np.testing.assert_allclose(state.params["w"][seed], alone.params["w"], rtol=1e-6)
        np.testing.assert_allclose(metrics["loss"][seed], own["loss"], rtol=1e-6)
    with pytest.raises(ValueError, match="2 keys"):
        both.init(KEY, batch)


def test_gathered_and_transformed_batches():
    learner = gathered(
        transformed(gradient(init, per_example(quadratic), optax.sgd(1.0)), lambda key, batch: {"x": batch["x"] * 2})
    )
    source = {"data": {"x": jnp.asarray([1.0, 5.0, 3.0])}, "index": jnp.asarray([0, 2])}
    state, _ = learner.step(learner.init(KEY, source), KEY, source)
    assert state.params["w"] == 4.0


# the loop


def run(workdir, steps, stop_at=None, bad_at=None, save_every=4, hooks_=(), seeds=0):
    """Fit a noisy regression of 20 steps, two a dispatch, in `workdir`."""

    def noisy(params, key, batch):
        noise = jax.random.normal(key, batch["x"].shape)
        return {"loss": 0.5 * (params["w"] - batch["x"] - noise) ** 2, "noise": noise}

    learner = gradient(init, per_example(noisy), optax.adam(0.1))
    learner = scan_steps(learner, 2)
    learner = with_seeds(learner, seeds) if seeds else learner
    key = jax.vmap(jax.random.key)(jnp.arange(seeds)) if seeds else KEY
    mesh = parallel.make_mesh({"data": -1})

    def feed(step):
        if stop_at is not None and step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = np.random.default_rng(step).normal(size=(2, 4)).astype(np.float32)
        if bad_at is not None and step <= bad_at < step + 2:
            x[bad_at - step] = np.inf
        return parallel.place({"x": x}, parallel.replicated(mesh))

    workdir.mkdir(exist_ok=True)
    manager = checkpoint.open_manager(workdir / "checkpoints")
    state, window = learner.init(key, feed(0)), {}
    there = parallel.layout(state, mesh)
    state = parallel.place(state, there)
    if manager.latest_step() is not None:
        state, meta = checkpoint.restore(manager, parallel.shaped(state, there))
        window = meta["window"]
    try:
        with hooks.run_log(workdir, int(state.step), steps, quiet=True) as log:
            state, _ = loop.fit(
                learner, state, key, feed, steps=steps, per_dispatch=2, log_every=6, log=log, hooks=hooks_,
                save=hooks.checkpoint_hook(manager, save_every, {}), window=window,
            )  # fmt: skip
    finally:
        manager.close()
    return state


@pytest.mark.parametrize("donate", [False, True])
def test_the_old_state_is_donated(donate):
    """And the compiler knows what `deterministic` asks of it, which only a GPU heeds."""
    learner = scan_steps(gradient(init, per_example(quadratic), optax.adam(0.1)), 1)
    state = learner.init(KEY, {"x": jnp.ones((1, 4))})
    loop.fit(
        learner, state, KEY, lambda step: {"x": jnp.ones((1, 4))}, steps=2, per_dispatch=1, log_every=2,
        log=lambda step, split, values: None, donate=donate,
        deterministic=donate,
    )  # fmt: skip
    assert all(leaf.is_deleted() == donate for leaf in jax.tree.leaves(state))


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole = run(tmp_path / "a", 20)
    with pytest.raises(loop.Stopped, match="SIGTERM at step 10"):
        run(tmp_path / "b", 20, stop_at=8)
    halves = run(tmp_path / "b", 20)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_array_equal(x, y)
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert [line["step"] for line in numbers(tmp_path / "a")] == [6, 12, 18, 20]


def test_divergence_names_step_and_metric_and_keeps_the_last_good_state(tmp_path):
    seen = []
    watch = loop.Hook(2, lambda step, state, progress: seen.append(float(state.params["w"])))
    with pytest.raises(loop.Diverged, match="step 10 is not finite: loss"):
        run(tmp_path, 20, bad_at=9, hooks_=(watch,))
    assert np.isfinite(seen).all() and len(seen) == 4
    manager = checkpoint.open_manager(tmp_path / "checkpoints")
    assert manager.latest_step() == 8
    manager.close()
    assert run(tmp_path, 20).step == 20


def test_a_state_that_an_update_broke_reaches_no_hook():
    """The loss and its gradient are finite; the parameters after the step are not."""
    learner, batch = gradient(init, per_example(quadratic), optax.sgd(jnp.inf)), {"x": jnp.ones((1, 4))}
    seen = []
    with pytest.raises(loop.Diverged, match="step 1: the update made parameters that are not finite"):
        loop.fit(
            scan_steps(learner, 1), learner.init(KEY, {"x": batch["x"][0]}), KEY, lambda step: batch, steps=2,
            per_dispatch=1, log_every=1, log=lambda step, split, values: None,
            hooks=[loop.Hook(1, lambda *given: seen.append(given))],
        )  # fmt: skip
    assert not seen


def test_a_diverging_seed_is_named():
    window = {}
    bad = {"loss": np.asarray([1.0, np.nan]), "finite": np.asarray([1.0, 0.5])}
    with pytest.raises(loop.Diverged, match=r"step 12 with seed config.seed \+ 1 \(of 2\) is not finite: loss"):
        loop._read(window, 10, bad, 2)
    loop._read(window, 10, {"loss": np.asarray([1.0, 3.0]), "finite": np.ones(2)}, 2)
    assert window["loss"] == [2.0, 1] and np.isclose(window["loss_std"][0], 2**0.5)


def test_idle_players_do_not_blur_the_mean():
    window = {}
    for value in (1.0, np.nan, 3.0):
        loop._read(window, 0, {"loss": np.asarray(value), "finite": np.asarray(1.0)}, 1)
    assert window["loss"] == [4.0, 2]


def test_a_divergence_is_not_laid_to_idle_players():
    player = Loss(lambda *a: (), lambda params, *a: (a[-1]["x"].mean() * params["b"]["w"], Out({"loss": jnp.inf})))
    learner = game(
        lambda key, batch: {name: {"w": jnp.ones(())} for name in "ab"},
        {"a": Player(player, optax.sgd(0.1), every=2), "b": Player(player, optax.sgd(0.1))},
    )
    state = learner.init(KEY, batch_of(1.0))._replace(step=jnp.asarray(1))
    _, metrics = learner.step(state, KEY, batch_of(1.0))
    assert np.isnan(metrics["a/loss"]) and metrics["finite"] == 0
    with pytest.raises(loop.Diverged, match=r"step 2 is not finite: b/loss\."):
        loop._read({}, 1, metrics, 1)


@pytest.mark.parametrize(
    "names, shown",
    [
        ("grad_norm loss time/step_s", "loss"),
        ("critic/loss critic/real generator/loss", "critic/loss generator/loss"),
        ("time/step_s nll nll_bits_per_dim", "nll"),
        ("time/step_s", ""),
    ],
)
def test_the_progress_bar_shows_losses_or_the_first_metric(names, shown):
    assert hooks.headline(dict.fromkeys(names.split(), 0.0)) == shown.split()


DUE = [(5, 0, 4, False), (5, 4, 6, True), (0, 4, 6, False), (0, 18, 20, True), (3, 0, 9, True)]


@pytest.mark.parametrize("every, begin, end, due", DUE)
def test_when_hooks_are_due(every, begin, end, due):
    assert loop._reached(every, begin, end, 20) == due
