"""Runs of dgm_jax as the command line makes them: malloc set, state donated, batches on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dgm_jax import cli, zoo
from dgm_jax import config as configs
from dgm_jax.nets.masked import hidden_mask, made_degrees, output_mask
from dgm_jax.report import environment  # noqa: F401  (run.py asks for it)
from dgm_jax.training.wrappers import scan_steps, with_seeds
from dgm_jax.types import Array, Key, Learner, Model, Params
from experiments.bench.setups import SEEDS, SETUPS, Run, batches


def set_up(threads: int) -> None:
    """Ours takes all cores."""
    cli.set_up_process()


def build(run: Run) -> Learner:
    """The learner of a config, for `per_dispatch` batches a call."""
    setup, config = SETUPS[run.setup], configs.base()
    config.model.update(shape=setup.shape, **setup.model)
    config.objective.update(name=setup.objective, **setup.options)
    config.train.duration = "1000"
    zoo.fill(config)
    learner = scan_steps(zoo.build(config)[1], run.per_dispatch)
    return with_seeds(learner, SEEDS, vectorize=run.seeds == "vmap") if run.seeds else learner


def make(run: Run, reference: None = None) -> tuple[Callable[[], None], float, dict[str, float]]:
    """A function that makes one dispatch and waits for it, and the seconds of compiling it."""
    if not SETUPS[run.setup].samples:
        return trainer(run)
    return passes(run.setup) if run.style == "passes" else sampler(run.setup)


def trainer(run: Run) -> tuple[Callable[[], None], float, dict[str, float]]:
    """`make` of training."""
    learner, key = build(run), jax.random.key(0)
    if run.seeds:
        key = jax.random.split(key, SEEDS)
    batch = {"x": jax.device_put(batches(run.setup, run.per_dispatch))}
    state = jax.jit(learner.init)(key, batch)
    began = time.perf_counter()
    step = jax.jit(learner.step, donate_argnums=0).lower(state, key, batch).compile()
    compile_s = time.perf_counter() - began

    def advance() -> None:
        nonlocal state
        state, metrics = step(state, key, batch)
        jax.block_until_ready((state, metrics))

    return advance, compile_s, {}


def sampler(setup: str) -> tuple[Callable[[], None], float, dict[str, float]]:
    """`make` of a whole batch of samples, by `sample`."""
    model, params = model_and_params(setup)
    key, n = jax.random.key(0), SETUPS[setup].batch
    began = time.perf_counter()
    sample = jax.jit(lambda params, key: model.sample(params, key, n)).lower(params, key).compile()
    compile_s = time.perf_counter() - began
    return lambda: jax.block_until_ready(sample(params, key)), compile_s, {}


def passes(setup: str) -> tuple[Callable[[], None], float, dict[str, float]]:
    """`make` of the next value of each sample of a batch, by a pass of the whole net."""
    model, params = model_and_params(setup)
    shape, n, key = SETUPS[setup].shape, SETUPS[setup].batch, jax.random.key(0)
    places = math.prod(shape)

    def one(params: Params, key: Key, x: Array, place: Array) -> Array:
        """x [B, D] with the value at `place` drawn, given what x has before it."""
        lit = x.at[:, place].set(1)
        log_p = model.log_conditionals(params, None, {"x": lit.reshape(-1, *shape)}).reshape(n, -1)[:, place]
        drawn = jax.random.bernoulli(jax.random.fold_in(key, place), jnp.exp(log_p))
        return x.at[:, place].set(drawn.astype(x.dtype))

    x, place = jnp.zeros((n, places)), 0
    began = time.perf_counter()
    draw = jax.jit(one).lower(params, key, x, place).compile()
    compile_s = time.perf_counter() - began

    def advance() -> None:
        nonlocal x, place
        x, place = jax.block_until_ready(draw(params, key, x, place)), (place + 1) % places

    return advance, compile_s, {}


def model_and_params(setup: str) -> tuple[Model, Params]:
    """A model that is sampled, its last kernel drawn where it starts at zero."""
    options = dict(SETUPS[setup].model)
    model = zoo.MODELS[options.pop("name")](shape=SETUPS[setup].shape, **options)
    params = jax.jit(model.init)(jax.random.key(0), {"x": batches(setup, 1)[0]})
    kernel = params["head"]["kernel"]
    params["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape)
    return model, params


def by_path(params: Params) -> dict[str, np.ndarray]:
    """Path -> value."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(part.key for part in path): np.asarray(value) for path, value in leaves}


def reference(setup: str, steps: int) -> dict[str, Any]:
    """What rivals are held against: a trajectory; of samplers "params", path -> value, and the "loss" of a batch."""
    if not SETUPS[setup].samples:
        return trajectory(setup, steps)
    model, params = model_and_params(setup)
    loss = -jax.jit(model.log_prob)(params, None, {"x": batches(setup, 1)[0]}).mean()
    return {"params": by_path(params), "loss": float(loss)}


def trajectory(setup: str, steps: int) -> dict[str, Any]:
    """The first steps of a run, for a rival to repeat.

    Returns:
        "masks": path -> mask of a kernel; "params": path -> value at the start; "moments": path -> Adam's mean of
        gradients after the first step; "losses" before each step; "noises" that the VAE drew, [steps, k, B, latent].
    """
    key, learner, xs = jax.random.key(0), build(Run(setup)), batches(setup, steps)
    masks: dict[str, np.ndarray] = {}
    losses, noises, moments = [], [], []
    if SETUPS[setup].model["name"] == "made":
        degrees = made_degrees(np.random.default_rng(0), xs.shape[-1], (500,), natural=True)
        inputs, hidden = map(jnp.asarray, degrees)
        masks["hidden_0/kernel"] = np.asarray(hidden_mask(inputs, hidden))
        masks["output/kernel"] = np.asarray(output_mask(hidden, inputs))
    state, step = learner.init(key, {"x": xs[:1]}), jax.jit(learner.step)
    params = by_path(state.params)
    for i, x in enumerate(xs):
        loss_key = reduce(jax.random.fold_in, (i, 0, 0), key)  # step, player, micro-batch
        draws = [jax.random.fold_in(loss_key, j) for j in range(SETUPS[setup].options.get("k", 1))]
        noises.append([np.asarray(jax.random.normal(draw_key, (len(x), 50))) for draw_key in draws])
        state, metrics = step(state, key, {"x": x[None]})
        losses.append(float(metrics["loss"]))
        moments.append(by_path(optax.tree_utils.tree_get(state.opt, "mu")))
    return {"masks": masks, "params": params, "moments": moments[0], "losses": losses, "noises": np.stack(noises)}
