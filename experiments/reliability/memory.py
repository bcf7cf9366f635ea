"""Whether a long run holds its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dgm_jax.training import hooks

FIELDS = {
    "train.duration": "20000 steps",
    "log.every": "250 steps",
    "eval.every": "1000 steps",
    "eval.test_k": "1",
    "checkpoint.every": "500 steps",
}
ALLOCATORS = {"": {}, "MALLOC_ARENA_MAX=2": {"MALLOC_ARENA_MAX": "2"}}  # as it comes, and as the environment may say


def growth(folder: Path) -> dict[str, dict[str, float]]:
    """`_of_a_run` for each of ALLOCATORS."""
    return {name: _of_a_run(folder / str(i), env) for i, (name, env) in enumerate(ALLOCATORS.items())}


def _of_a_run(folder: Path, env: dict[str, str]) -> dict[str, float]:
    """Peak memory, in MB, of a process after the first 1,000 steps of the VAE of binarized MNIST and after 20,000."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "-m", "dgm_jax", "train", "--config=vae_binarized_mnist", f"--workdir={folder}", *fields]
    subprocess.run(command, env=os.environ | env, check=True, capture_output=True)
    lines = [line for line in hooks.read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
    # the first line after the evaluation and the checkpoint of step 1,000; all are rounded to whole dispatches
    at = {line["step"]: line["time/memory_bytes"] / 1e6 for line in lines}
    return {"after_1000": at[min(step for step in at if step > 1200)], "after_20000": at[max(at)]}
