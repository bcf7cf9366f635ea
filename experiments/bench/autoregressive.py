"""NADE, Gated PixelCNN and its sampler against PyTorch: `python -m experiments.bench.autoregressive`.

All run in turns in one process, on all cores. Before a rival is timed its first losses are held against ours. A
sampler that passes the whole net for every pixel is timed for PASSES of its passes, which all cost the same, and scaled
to one a pixel.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from dgm_jax import cli, report, zoo
from dgm_jax.types import Model, Params
from experiments.bench import torch_autoregressive as rivals
from experiments.study import replace_between

HERE = Path(__file__).parent
SIDE, IMAGES, PASSES = 28, 100, 6
NADE = {"name": "nade", "hidden": 500, "activation": "relu"}
PIXELCNN = {"name": "gated_pixelcnn", "features": 64, "layers": 7, "head": 128}
Run = Callable[[], Any]


def main() -> None:
    """Command line: measure, keep, and rebuild the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each run")
    parser.add_argument("--table", action="store_true", help="only rebuild the table")
    options = parser.parse_args()
    page = HERE / "autoregressive.json"
    if not options.table:
        cli.set_up_process()
        found = {
            "NADE 784-500, a step of 100": turns(nade_steps(100), options.rounds),
            "Gated PixelCNN 7x64, a step of 16": turns(pixelcnn_steps(16), options.rounds),
            f"Gated PixelCNN 7x64, {IMAGES} samples": turns(samplers(), min(options.rounds, 5)),
        }
        report.write_json(page, {"found": found, "torch": torch.__version__, **report.environment()})
    lines = table(json.loads(page.read_text()))
    replace_between(HERE / "README.md", "<!-- autoregressive -->", "<!-- end of autoregressive -->", lines)


def turns(runs: dict[str, tuple[Run, float]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each run, taking turns: of its first call, then median and quartiles, times its factor."""
    first, seconds = {}, {name: [] for name in runs}
    for name, (run, _) in runs.items():
        began = time.perf_counter()
        run()
        first[name] = time.perf_counter() - began
    for _ in range(rounds):
        for name, (run, factor) in runs.items():
            for _ in range(3):
                began = time.perf_counter()
                run()
                seconds[name].append(factor * (time.perf_counter() - began))
    found = {}
    for name, times in seconds.items():
        low, median, high = np.percentile(times, [25, 50, 75])
        found[name] = {"median_s": median, "quartiles": [low, high], "n": len(times), "first_s": first[name]}
        print(name, {key: value for key, value in found[name].items() if key != "n"}, flush=True)
    return found


def made(options: dict[str, Any]) -> tuple[Model, Params]:
    """A model with its parameters; the last kernel, which starts at zero, is drawn."""
    options = dict(options)
    model = zoo.MODELS[options.pop("name")](shape=(SIDE, SIDE, 1), **options)
    params = jax.jit(model.init)(jax.random.key(0), {"x": jnp.asarray(images(20))})
    if "kernel" in params.get("head", {}):
        kernel = params["head"]["kernel"]
        params["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape)
    return model, params


def images(n: int) -> np.ndarray:
    return (np.random.default_rng(0).random((n, SIDE, SIDE, 1)) < 0.3).astype(np.float32)


def our_step(model: Model, params: Params, x: np.ndarray) -> Callable[[], float]:
    """A step of Adam that waits: () -> the loss before it."""
    tx = optax.adam(1e-3)
    params = jax.tree.map(jnp.copy, params)
    state, batch = (params, tx.init(params)), {"x": jnp.asarray(x)}

    def update(state: tuple[Params, Any]) -> tuple[tuple[Params, Any], jax.Array]:
        params, opt = state
        loss, grads = jax.value_and_grad(lambda params: -model.log_prob(params, None, batch).mean())(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), loss

    compiled = jax.jit(update, donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, loss = compiled(state)
        jax.block_until_ready(state)
        return float(loss)

    return step


def paired(ours: Callable[[], float], theirs: dict[str, Callable[[], float]]) -> dict[str, tuple[Run, float]]:
    """The runs, after their first three losses were found to be ours."""
    losses = [ours() for _ in range(3)]
    for name, run in theirs.items():
        found = [run() for _ in range(3)]
        if not np.allclose(found, losses, rtol=1e-4):
            raise ValueError(f"{name}: losses {found}, ours {losses}")
    return {"ours": (ours, 1.0)} | {name: (run, 1.0) for name, run in theirs.items()}


def nade_steps(batch: int) -> dict[str, tuple[Run, float]]:
    """Training steps of NADE."""
    model, params = made(NADE)
    x = images(batch)
    flat = torch.tensor(x.reshape(batch, -1))
    runs: dict[str, Callable[[], float]] = {}
    for name, logits in rivals.NADES.items():
        step = rivals.training_step(logits, rivals.tensors(params))
        runs[f"torch eager, {name}"] = lambda step=step: step(flat)
    for name in ("cumsum", "blocks"):  # compiling the loop of 784 dimensions takes longer than an hour's training
        step = rivals.training_step(torch.compile(rivals.NADES[name]), rivals.tensors(params))
        runs[f"torch compiled, {name}"] = lambda step=step: step(flat)
    return paired(our_step(model, params, x), runs)


def pixelcnn_steps(batch: int) -> dict[str, tuple[Run, float]]:
    """Training steps of Gated PixelCNN."""
    model, params = made(PIXELCNN)
    x = images(batch)
    channels_first = torch.tensor(x.transpose(0, 3, 1, 2))
    runs: dict[str, Callable[[], float]] = {}
    for name, logits in (("eager", rivals.gated_pixelcnn), ("compiled", torch.compile(rivals.gated_pixelcnn))):
        step = rivals.training_step(logits, rivals.tensors(params))
        runs[f"torch {name}"] = lambda step=step: step(channels_first)
    return paired(our_step(model, params, x), runs)


def samplers() -> dict[str, tuple[Run, float]]:
    """Samplers of IMAGES images: ours, and full passes of the net for every pixel in JAX and in PyTorch."""
    model, params = made(PIXELCNN)
    x, key = images(IMAGES), jax.random.key(0)
    sample = jax.jit(lambda params, key: model.sample(params, key, IMAGES))

    @jax.jit
    def a_pass(params: Params, key: jax.Array, x: jax.Array, place: jax.Array) -> jax.Array:
        ones = model.log_conditionals(params, None, {"x": jnp.ones_like(x)})  # its inputs are of no matter to its time
        logit = jax.lax.dynamic_index_in_dim(ones.reshape(IMAGES, -1), place, 1, keepdims=False)
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(logit)).astype(x.dtype)
        return x.reshape(IMAGES, -1).at[:, place].set(drawn).reshape(x.shape)

    def in_jax() -> None:
        state = jnp.asarray(x)
        for place in range(PASSES):
            state = a_pass(params, key, state, place)
        jax.block_until_ready(state)

    weights = rivals.tensors(params)
    start = torch.tensor(x.transpose(0, 3, 1, 2))

    def in_torch(net: Callable) -> Run:
        @torch.inference_mode()
        def run() -> None:
            state = start.clone()
            for place in range(PASSES):
                row, column = divmod(place, SIDE)
                state[:, :, row, column] = torch.bernoulli(torch.sigmoid(net(weights, state)[:, :, row, column]))

        return run

    factor = SIDE * SIDE / PASSES
    return {
        "ours": (lambda: jax.block_until_ready(sample(params, key)), 1.0),
        "full passes in JAX": (in_jax, factor),
        "full passes in torch, eager": (in_torch(rivals.gated_pixelcnn), factor),
        "full passes in torch, compiled": (in_torch(torch.compile(rivals.gated_pixelcnn)), factor),
    }


def table(page: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    where = f"{page['device']}, {page['cores']} cores; jax {page['versions']['jax']}, torch {page['torch']}; "
    lines = ["", f"{where}commit {page['commit']}.", "", "| | | ms (quartiles) | times ours |", "|---|---|---|---|"]
    for setup, rows in page["found"].items():
        for name, row in rows.items():
            low, high = (1e3 * value for value in row["quartiles"])
            times = row["median_s"] / rows["ours"]["median_s"]
            lines.append(f"| {setup} | {name} | {1e3 * row['median_s']:,.1f} ({low:,.1f}-{high:,.1f}) | {times:,.2f} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
