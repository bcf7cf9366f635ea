"""Whether a long run holds its memory."""

from __future__ import annotations

from pathlib import Path

from dgm_jax import api
from dgm_jax.training import hooks

STEPS = 20_000


def growth(folder: Path) -> dict[str, float]:
    """Peak memory of the process, in MB, after the first 1,000 steps of the VAE of binarized MNIST and after 20,000.

    It logs every 250 steps, evaluates every 1,000 and saves every 500.
    """
    every = {"log.every": "250 steps", "eval.every": "1000 steps", "checkpoint.every": "500 steps"}
    api.train(
        api.load_config("vae_binarized_mnist", {"train.duration": f"{STEPS} steps", "eval.test_k": 1} | every),
        folder,
        quiet=True,
    )
    lines = [line for line in hooks.read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
    # the first line after the evaluation and the checkpoint of step 1,000; all are rounded to whole dispatches
    at = {line["step"]: line["time/memory_bytes"] / 1e6 for line in lines}
    return {"after_1000": at[min(step for step in at if step > 1200)], "after_20000": at[max(at)]}
