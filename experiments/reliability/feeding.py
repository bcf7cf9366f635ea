"""How fast data are fed, and how long training waits for them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax import api, runs
from dgm_jax.training import parallel
from dgm_jax.training.wrappers import gathered, scan_steps
from dgm_jax.types import Batch, Key, Learner, Metrics, State

IMAGES, BATCH, DISPATCH = 60_000, 100, 50


def images_per_second(folder: Path) -> dict[str, float]:
    """Images of 28x28 bytes a second, in batches on the device, from memory and streaming from a file through grain."""
    np.save(folder / "data.npy", np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28), np.uint8))
    found = {}
    for name, stream, dispatches in (("memory", False, 200), ("stream", True, 100)):
        duration = f"{DISPATCH * dispatches} steps"
        overrides = {"data.name": f"npy:{folder / 'data.npy'}", "data.stream": stream, "train.duration": duration}
        overrides |= {"data.batch": BATCH, "train.per_dispatch": DISPATCH}
        run = runs.prepare(api.load_config("vae_digits", overrides))
        mesh = parallel.make_mesh({"data": -1})
        learner = scan_steps(Learner(lambda key, batch: State(jnp.zeros((), jnp.int32), ()), look), DISPATCH)
        step = jax.jit((learner if stream else gathered(learner)).step)
        feed, key = runs.make_feed(run, mesh), jax.random.key(0)
        state, _ = jax.block_until_ready(step(State(jnp.zeros((), jnp.int32), ()), key, feed(0)))
        began = time.perf_counter()
        for dispatch in range(1, dispatches):
            state, _ = step(state, key, feed(dispatch * DISPATCH))
        jax.block_until_ready(state)
        found[name] = (dispatches - 1) * DISPATCH * BATCH / (time.perf_counter() - began)
    return found


def look(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
    """A step that has the whole batch in memory, and does next to nothing with it."""
    x = jax.lax.optimization_barrier(batch["x"])
    return state._replace(step=state.step + 1), {"loss": x[0, 0, 0].sum(dtype=jnp.float32), "finite": jnp.ones(())}


def waiting(folder: Path) -> dict[str, Any]:
    """The share of the time of training that the loop waits for data: the VAE of binarized MNIST, 5,000 steps."""
    found = {}
    for name, stream in (("memory", False), ("stream", True)):
        overrides = {
            "data.stream": stream,
            "train.duration": "5000 steps",
            "eval.test_k": 1,
        }
        result = api.train(api.load_config("vae_binarized_mnist", overrides), folder / name, quiet=True)
        found[name] = {"share": result["wait_share"], "step_s": result["step_s"]}
    return found
