"""bfloat16 inside nets, float32 around them; activations that are computed again."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax import api, runs, zoo
from dgm_jax.nets import conv
from dgm_jax.nets.causal import Above, Left
from dgm_jax.nets.conv import Conv
from dgm_jax.nets.masked import MaskedDense
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import mixed
from dgm_jax.training.compilation import jit_once

NETS = [
    "made_digits",
    "vae_digits",
    "vae_conv_digits",
    "gan_digits",
    "realnvp_digits",
    "ddpm_digits",
    "layered_vae_digits",
]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NETS[3:]]


CONDITIONAL = ["made_digits", "vae_digits", "pixelcnn_digits", "gated_pixelcnn_digits", "pixelrnn_digits"]


def built(name, **model):
    """(model, learner, batch) of a tiny config, with labels where there are classes."""
    overrides = {f"model.{key}": value for key, value in model.items()}
    run = runs.prepare(api.load_config(f"{name}:tiny", overrides))
    raw = runs.pipeline.take(run.data.splits["train"], np.arange(32), cond=bool(model.get("classes")))
    batch, _ = runs.transforms.apply(run.transform, jax.random.key(1), raw)
    return *zoo.build(run.config), batch


def products(jaxpr):
    """The dtypes of the operands of every product and convolution."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {str(v.aval.dtype) for v in eqn.invars}
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from products(inner)


@pytest.mark.parametrize("name", NETS[:3] + SLOW)
def test_nets_compute_in_bfloat16_and_all_else_is_float32(name):
    key, states = jax.random.key(0), {}
    for bf16 in (False, True):
        _, learner, batch = built(name, bf16=bf16)
        states[bf16] = jax.eval_shape(learner.init, key, batch)
        closed, (after, metrics) = jax.make_jaxpr(learner.step, return_shape=True)(states[bf16], key, batch)
        found = list(products(closed.jaxpr))
        low = sum(types == {"bfloat16"} for types in found)
        assert low == 0 if not bf16 else low > len(found) / 2
        for leaf in jax.tree.leaves((after, metrics)):
            assert leaf.dtype != jnp.bfloat16
    assert states[True] == states[False]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditions_leave_no_product_in_float32(name):
    model, _, batch = built(name, bf16=True, classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    f = model.log_prob if model.log_prob is not None else lambda params, key, batch: model.encode(params, key, batch)
    found = list(products(jax.make_jaxpr(f, static_argnums=1)(params, None, batch).jaxpr))
    assert found and all(types == {"bfloat16"} for types in found)


@pytest.mark.parametrize("name", [NETS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NETS[1:3])])
def test_losses_in_bfloat16_are_close(name):
    key, found = jax.random.key(0), {}
    for bf16 in (False, True):
        _, learner, batch = built(name, bf16=bf16)
        state, step = jit_once(learner.init)(key, batch), jax.jit(learner.step)
        for _ in range(3):
            state, found[bf16] = step(state, key, batch)
    for metric, value in found[False].items():
        if "loss" in metric:
            np.testing.assert_allclose(found[True][metric], value, rtol=0.05, atol=0.05)


LAYERS = {
    "conv": Conv(4),
    "dense": Dense(4),
    "left": Left(4, 2),
    "above": Above(4, 2, 3),
    "masked": MaskedDense(4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_summed_in_float32(name):
    """A sum of so many terms in bfloat16 would be several times too small."""
    layer, more = LAYERS[name], [np.ones((3, 4), bool)] if name == "masked" else []
    keys = jax.random.split(jax.random.key(0))
    x, g = jax.random.uniform(keys[0], (64, 14, 14, 3)), jax.random.uniform(keys[1], (64, 14, 14, 4))
    params = layer.init(keys[0], x, *more)
    wide, low = (
        jax.jit(jax.grad(lambda params, net=net: (net.apply(params, x, *more) * g).sum()))(params)
        for net in (mixed(layer, False), mixed(layer, True))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02), low, wide)


def test_weight_gradients_of_parts_of_a_batch_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(conv, "IN_CACHE", 1)  # so that the parts are single examples
    x = jnp.ones((512, 4, 4, 1), jnp.bfloat16)
    found = jax.grad(lambda w: conv.conv(x, w).astype(jnp.float32).sum())(jnp.ones((3, 3, 1, 1), jnp.bfloat16))
    assert found[1, 1, 0, 0] == 512 * 16


REPEATED = {  # models in which more than biases is the same at all pixels or steps
    "gated_pixelcnn": {"features": 8, "layers": 2, "classes": 2},
    "gated_pixelcnn of codes": {"features": 8, "layers": 2, "output": "categorical", "levels": 2, "embedding": 4},
    "pixelcnn": {"features": 4, "layers": 1, "classes": 2},
    "pixelcnnpp": {"features": 8, "blocks": 1, "stages": 2, "levels": 2, "components": 2, "classes": 2},
    "pixelrnn": {"features": 4, "layers": 1, "classes": 2},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in REPEATED])
def test_gradients_of_image_nets_are_summed_in_float32(name):
    shape, keys, slopes = (12, 12, 1), jax.random.split(jax.random.key(0), 3), []
    batch = {"x": jax.random.bernoulli(keys[0], 0.3, (64, *shape)).astype(jnp.float32), "cond": jnp.arange(64) % 2}
    for bf16 in (False, True):
        model = zoo.MODELS[name.split()[0]](shape=shape, bf16=bf16, **REPEATED[name])
        if not bf16:
            params = model.init(keys[1], {"x": batch["x"], "cond": batch["cond"]})
            params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(keys[2], leaf.shape), params)
        slopes.append(jax.jit(jax.grad(lambda params, model=model: model.log_prob(params, None, batch).mean()))(params))
    for wide, low in zip(*map(jax.tree.leaves, slopes), strict=True):
        assert jnp.linalg.norm(low - wide) < 0.2 * jnp.linalg.norm(wide)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realnvp_digits", "ddpm_digits"])
def test_activations_computed_again_give_the_same_step(name):
    key, states = jax.random.key(0), {}
    for remat in (False, True):
        _, learner, batch = built(name, remat=remat)
        state = jit_once(learner.init)(key, batch)
        states[remat], _ = jax.jit(learner.step)(state, key, batch)
        assert ("remat" in str(jax.make_jaxpr(learner.step)(state, key, batch))) == remat
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states[True], states[False])


@pytest.mark.slow
def test_they_take_less_memory():
    used = {}
    for remat in (False, True):
        model, _, batch = built("realnvp_digits", width=32, depth=2, couplings=8, remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0), batch)
        slope = jax.jit(jax.grad(lambda params, model=model: model.log_prob(params, None, batch).mean()))
        used[remat] = slope.lower(params).compile().memory_analysis().temp_size_in_bytes
    assert used[True] < 0.5 * used[False], used
