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
    # the line of step 1,000 comes before its evaluation and checkpoint: the next one is the first after them
    at = {line["step"]: line["time/memory_bytes"] / 1e6 for line in lines}
    return {"after_1000": at[1250], "after_20000": at[STEPS]}
