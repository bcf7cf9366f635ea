"""Where arrays lie, on eight simulated devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dgm_jax import config as configs
from dgm_jax import verification, zoo
from dgm_jax.training import parallel
from dgm_jax.training.wrappers import DEVICES, over_devices
from dgm_jax.types import State
from dgm_jax.verification.space import random_batch, widen

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae_digits", "gan_digits", "rbm_digits", "mixture_digits"])
def test_devices_under_pmap_draw_what_micro_batches_draw(name):
    n = jax.device_count()
    with jax.enable_x64(True):
        config, space = verification.small(configs.load(f"{name}:tiny", fill=zoo.fill))
        over = over_devices(zoo.build(config, DEVICES)[1], n)
        with config.unlocked():
            config.train.micro = n
        alone = zoo.build(config)[1]
        batch, key = random_batch(space, 1, 2 * n), jax.random.key(0)
        batch["mask"] = jnp.arange(2.0 * n) < n + 3  # so that the devices' batches differ in weight
        one, many = (widen(learner.init(key, batch)) for learner in (alone, over))
        step, step_over = (jax.jit(learner.step) for learner in (alone, over))
        for _ in range(3):
            (one, expected), (many, found) = step(one, key, batch), step_over(many, key, batch)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), many, one)
