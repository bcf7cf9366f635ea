"""How long an evaluation takes: `python -m experiments.bench.bound` times the importance-weighted bound of a VAE.

It is what every run with a VAE ends with, here of random bits, once; minutes. Writes `bound.json` and its
line in README.md.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import jax

from dgm_jax import cli, report, zoo
from dgm_jax.data import pipeline, transforms
from dgm_jax.data.dataset import Info
from dgm_jax.evaluation import nll
from experiments.bench.setups import SETUPS, batches
from experiments.study import replace_between

HERE = Path(__file__).parent
SETUP, IMAGES, DRAWS, CHUNK = "VAE 784-200-200-50", 10_000, 5_000, 50


def measure() -> dict:
    """The content of bound.json."""
    setup = SETUPS[SETUP]
    options = dict(setup.model)
    model = zoo.MODELS[options.pop("name")](shape=setup.shape, **options)
    x = batches(SETUP, IMAGES // setup.batch).reshape(IMAGES, *setup.shape)
    params = jax.jit(model.init)(jax.random.key(0), {"x": x[: setup.batch]})
    bits = transforms.make((), Info("bits", setup.shape, "binary", 2, range=(0.0, 1.0)))
    scorer = {f"iwae_{DRAWS}": nll.scorers(model, DRAWS, CHUNK)[f"iwae_{DRAWS}"]}
    score = nll.per_example(scorer, bits)

    def seconds(n: int) -> float:
        began = time.perf_counter()
        score(params, jax.random.key(0), pipeline.eval_batches({"x": x[:n]}, setup.batch))
        return time.perf_counter() - began

    load = os.getloadavg()[0]
    first = seconds(setup.batch)
    return {"seconds": seconds(IMAGES), "first_batch_s": first, "load": load} | report.environment()


def main() -> None:
    cli.set_up_process()
    result = measure()
    (HERE / "bound.json").write_text(json.dumps(result, indent=1) + "\n")
    where = f"{result['device']}, {result['cores']} cores, load average {result['load']:.1f} at the start"
    line = (
        f"The {DRAWS:,}-sample bound of {IMAGES:,} images, {SETUP}: {result['seconds']:.0f} s ({where}; jax "
        f"{result['versions']['jax']}; commit {result['commit']})."
    )
    replace_between(HERE / "README.md", "<!-- bound -->", "<!-- end of bound -->", ["", line, ""])


if __name__ == "__main__":
    main()
