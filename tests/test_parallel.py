"""Where arrays lie, on eight simulated devices; that each row computes there what one device does, test_contract."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec as P

from dgm_jax import api, runs, scoring, verification, zoo
from dgm_jax import config as configs
from dgm_jax.training import checkpoint, parallel
from dgm_jax.training.compilation import jit_once
from dgm_jax.training.learners import gradient, per_example
from dgm_jax.training.wrappers import DEVICES, over_devices
from dgm_jax.types import State
from dgm_jax.verification.space import random_batch, widen
from experiments.reliability.sharding import bytes_per_device, collectives, compiled

STATE = State(
    jnp.zeros((), jnp.int32),
    {"net": {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128), "odd": jnp.zeros((63, 127))}},
    opt={"mu": {"net": {"kernel": jnp.zeros((64, 128))}}},
    carry={"chains": jnp.zeros((16, 8, 8, 1)), "count": jnp.zeros(3)},
)


def specs(state, mesh, **options):
    return jax.tree.map(lambda sharding: sharding.spec, parallel.layout(state, mesh, **options))


def test_parameters_are_split_over_fsdp_and_chains_like_a_batch():
    found = specs(STATE, parallel.make_mesh({"data": 2, "fsdp": 4}))
    assert found.params["net"] == {"kernel": P(None, "fsdp"), "bias": P(), "odd": P()}
    assert found.opt["mu"]["net"]["kernel"] == P(None, "fsdp")
    assert found.carry == {"chains": P(("data", "fsdp")), "count": P()} and found.step == P()


def test_rules_come_first():
    mesh = parallel.make_mesh({"data": 2, "tensor": 4})
    found = specs(STATE, mesh, rules=[("net/kernel$", ("tensor",))])
    assert found.params["net"]["kernel"] == P("tensor") == found.opt["mu"]["net"]["kernel"]
    assert found.params["net"]["bias"] == P()
    with pytest.raises(ValueError, match=r"\('odd', .* does not fit params/net/odd \(63, 127\)"):
        parallel.layout(STATE, mesh, rules=[("odd", (None, "tensor"))])


def test_seeds_stay_whole():
    seeds = jax.tree.map(lambda x: jnp.stack([x, x]), STATE)._replace(step=STATE.step)
    found = specs(seeds, parallel.make_mesh({"fsdp": 8}), lead=1)
    assert found.params["net"]["kernel"] == P(None, None, "fsdp")
    assert found.carry["chains"] == P(None, ("data", "fsdp")) and found.step == P()


def test_a_mesh_that_does_not_fill_the_devices_is_refused():
    with pytest.raises(ValueError, match="does not use all 8 devices"):
        parallel.make_mesh({"data": 3})
    with pytest.raises(ValueError, match="unknown mesh axis"):
        parallel.make_mesh({"model": 8})
    for size in (0, -2):
        with pytest.raises(ValueError, match=f"mesh {{'fsdp': {size}}}: an axis has 1 device or more"):
            parallel.make_mesh({"data": -1, "fsdp": size})


def subject(name, micro=1, axis=None):
    """A row's learner and a batch, in double precision, by SGD: Adam divides rounding errors by themselves where a
    gradient is zero, as that of a bias before a norm."""
    config, space = verification.small(configs.load(f"{name}:tiny", fill=zoo.fill))
    with config.unlocked():
        if config.optimizer.name != "em":  # which draws nothing, and knows no micro-batches
            config.train.micro = micro
            config.optimizer = configs.ConfigDict({"name": "sgd", "learning_rate": 1e-2, "players": {}})
    return zoo.build(config, axis)[1], random_batch(space, 1, 16)


def steps_of(learner, state, key, batch, n=20):
    step = jax.jit(learner.step, out_shardings=(jax.tree.map(lambda x: x.sharding, state), parallel.whole(state)))
    for _ in range(n):
        state, metrics = step(state, key, batch)
    return state, metrics


def assert_close(one, other, tolerance=1e-9):
    (state, metrics), (expected, expected_metrics) = one, other
    for name in expected_metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=tolerance, atol=tolerance)
    for path, leaf in checkpoint.flatten(expected).items():
        scale = 1 + np.abs(leaf).max(initial=0)
        np.testing.assert_allclose(checkpoint.flatten(state)[path], leaf, rtol=0, atol=tolerance * scale, err_msg=path)


@pytest.mark.slow
def test_the_rules_of_a_config_part_its_hidden_units():
    config = configs.load("made_masks_binarized_mnist:tiny", fill=zoo.fill)
    with config.unlocked():
        config.model.shape, config.train.duration = (4, 4, 1), "100"
        config.optimizer = configs.ConfigDict({"name": "sgd", "learning_rate": 1e-2})
    key, mesh = jax.random.key(0), parallel.make_mesh({"data": 2, "tensor": 4})
    with jax.enable_x64(True):
        learner = zoo.build(config)[1]
        batch = {"x": jnp.asarray(np.random.default_rng(0).integers(2, size=(16, 4, 4, 1)), float)}
        first = widen(jax.jit(learner.init)(key, batch))
        there = parallel.layout(first, mesh, config.sharding, small=0)
        hidden, output = (there.params[name]["kernel"].spec for name in ("hidden_0", "output"))
        assert hidden == P(None, "tensor") and output == P("tensor")
        placed = parallel.place(batch, parallel.by_example(mesh, axis=0))
        spread = steps_of(learner, parallel.place(first, there), key, placed)
        assert_close(spread, steps_of(learner, first, key, batch))
        alone = parallel.layout(first, parallel.make_mesh({"fsdp": 8}), config.sharding, small=0)
        assert alone.params["hidden_0"]["kernel"].spec == P("fsdp")  # a rule for an axis of one device gives way


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae_digits", "gan_digits", "rbm_digits", "mixture_digits"])
def test_devices_under_pmap_draw_what_micro_batches_draw(name):
    key, n = jax.random.key(0), jax.device_count()
    with jax.enable_x64(True):
        over, batch = subject(name, axis=DEVICES)
        alone, _ = subject(name, micro=n)
        batch["mask"] = jnp.arange(16.0) < 11  # so that the devices' batches differ in weight
        first = widen(jit_once(alone.init)(key, batch))
        everywhere = parallel.place(first, parallel.replicated(parallel.make_mesh({"data": -1})))
        assert_close(steps_of(over_devices(over, n), everywhere, key, batch, 3), steps_of(alone, first, key, batch, 3))


@pytest.mark.parametrize("pmap", [False, True])
def test_devices_draw_different_noise(pmap):
    """The noise that a loss draws for equal examples, as its metrics show it."""

    def noisy(params, key, batch):
        noise = jax.random.normal(key, batch["x"].shape)
        return {"loss": params["w"] * noise, "square": noise**2}

    n = jax.device_count()
    learner = gradient(
        lambda key, batch: {"w": jnp.ones(())}, per_example(noisy), optax.sgd(1.0), axis=DEVICES if pmap else None
    )
    learner = over_devices(learner, n) if pmap else learner
    mesh = parallel.make_mesh({"data": -1})
    batch = parallel.place({"x": jnp.zeros(4 * n)}, parallel.by_example(mesh, axis=0))
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    new, _ = jax.jit(learner.step)(state, jax.random.key(0), batch)
    # were the draws of the devices equal, the mean over 32 of them would be that over 4
    drawn = float(state.params["w"] - new.params["w"])
    four = [jax.random.normal(jax.random.fold_in(KEYS[0], i), (4,)).mean() for i in range(n)]
    assert all(abs(drawn - float(mean)) > 1e-3 for mean in four)
    if pmap:
        np.testing.assert_allclose(drawn, np.mean(four), rtol=1e-5)


KEYS = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)]  # of the first player's first step


SCALARS = 100  # bytes: the metrics


def test_data_parallel_reduces_the_gradients_once():
    state, program, _ = compiled({"data": 8})
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    ((name, reduced),) = collectives(program)
    assert name == "all-reduce" and size <= reduced <= size + SCALARS


def test_fsdp_gathers_parameters_and_reduces_gradients():
    state, program, _ = compiled({"fsdp": 8})
    leaves = jax.tree.leaves(state.params)
    split = [leaf for leaf in leaves if any(leaf.sharding.spec)]
    found = collectives(program)
    assert len(split) == 5 and {name for name, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert sorted(n for name, n in found if name == "all-gather") == sorted(4 * leaf.size for leaf in split)
    # this backend has no reduce-scatter: it reduces whole gradients, and takes its part
    reduced = sorted(n for name, n in found if name == "all-reduce")
    assert reduced[-1] <= 4 * sum(leaf.size for leaf in leaves) + SCALARS and sum(reduced[:-1]) <= SCALARS


@pytest.mark.slow
def test_memory_of_parameters_and_optimizer_falls_with_devices():
    used = {n: bytes_per_device(n) for n in (1, 2, 4, 8)}
    state, *_ = compiled({"data": 1}, hidden=(1024, 1024))
    assert used[1] == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    for n in (2, 4, 8):
        assert used[n] < 1.05 * used[1] / n, used


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_feeding(tmp_path):
    overrides = {"mesh.data": 2, "mesh.fsdp": 4}
    whole = api.train(api.load_config("vae_digits:tiny", overrides), tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    (tmp_path / "moved" / "result.json").unlink()
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "8")  # as if it had been killed after step 4
    overrides = {"mesh.data": 8, "data.stream": True}
    result = api.train(api.load_config("vae_digits:tiny", overrides), tmp_path / "moved", quiet=True)
    for name, metric in result["metrics"].items():
        np.testing.assert_allclose(metric["value"], whole["metrics"][name]["value"], rtol=1e-5)
    assert result["config"]["mesh"]["data"] == 8
    with checkpoint.opened(tmp_path / "moved" / "checkpoints") as manager:
        page = manager.restore(8, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    assert page["config"] == result["config"] and page["versions"] == result["versions"]


@pytest.mark.slow
def test_an_evaluation_is_split_over_devices_whatever_its_batch(monkeypatch):
    run = runs.prepare(api.load_config("vae_digits:tiny", {"eval.batch": 6, "eval.metric_samples": 8}))
    model, _ = zoo.build(run.config)
    place, shapes, found = parallel.place, [], []

    def watched(batch, there):
        shapes.append({there.shard_shape(x.shape)[0] for x in jax.tree.leaves(batch)})
        return place(batch, there)

    monkeypatch.setattr(parallel, "place", watched)
    for devices in (1, 4):
        mesh = parallel.make_mesh({"data": -1}, jax.devices()[:devices])
        params = place(model.init(jax.random.key(0), {"x": jnp.zeros((2, 8, 8, 1))}), parallel.replicated(mesh))
        found.append(scoring.make_evaluator(model, run, "test", 2, mesh)(params))
    assert shapes == [{6}] * 8 + [{2}] * 8  # of 20 examples, twice: those of active units too
    for name, metric in found[0].items():
        assert found[1][name]["value"] == pytest.approx(metric["value"], rel=1e-5)


@pytest.mark.parametrize("name", ["vae_digits:tiny", "gan_digits:tiny"])
def test_samples_are_drawn_in_batches(name):
    drawn = {}
    run = runs.prepare(api.load_config(name, {"eval.batch": 4, "data.cond": True, "model.classes": 10}))
    model, _ = zoo.build(run.config)
    params = model.init(jax.random.key(0), {"x": jnp.zeros((2, 8, 8, 1)), "cond": jnp.zeros(2, int)})
    key = jax.random.key(1)
    for n in (3, 8, 11):
        drawn[n] = runs.draw_samples(model, run, params, key, n)
        assert drawn[n].shape == (n, 8, 8, 1)
    np.testing.assert_array_equal(drawn[8], drawn[11][:8])
    labels = jnp.arange(11) % 10
    own = model.sample(params, jax.random.fold_in(key, 1), 4, labels[4:8])
    np.testing.assert_allclose(drawn[8][4:], jax.vmap(run.transform.inverse)(own), atol=1e-5)
    assert len(np.unique(drawn[11].reshape(11, -1).round(4), axis=0)) == 11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nade", "gated_pixelcnn"])
def test_each_device_draws_its_part_of_the_samples(name):
    small = {"nade": {"hidden": 16}, "gated_pixelcnn": {"features": 4, "layers": 2, "head": 4}}[name]
    model, mesh = zoo.MODELS[name](shape=(4, 4, 1), **small), parallel.make_mesh({"data": 8})
    params = model.init(jax.random.key(0), {"x": jnp.zeros((2, 4, 4, 1))})
    params, key = parallel.place((params, jax.random.key(1)), parallel.replicated(mesh))
    drawn, flops = [], []
    for there in (parallel.by_example(mesh, axis=0), parallel.replicated(mesh)):
        draw = jax.jit(lambda params, key: model.sample(params, key, 16), out_shardings=there)
        compiled = draw.lower(params, key).compile()
        drawn.append(np.asarray(compiled(params, key)))
        flops.append(compiled.cost_analysis()["flops"])
    np.testing.assert_array_equal(*drawn)
    assert flops[0] < 0.2 * flops[1]
