"""VQ-VAE-2 with priors over its codes: `python -m experiments.two_stage.run cifar10`, or `fashion_mnist`.

Each trains its three runs, one after the other: the autoencoder, the prior of the top codes, and that of the bottom
codes given the top ones, which samples images and has the bound on their likelihood.
"""

import sys
from pathlib import Path

from experiments.study import Row, main

WORKDIRS = "runs/two_stage"
SMALL = {  # with the priors, what two slow cores train in three quarters of an hour on Fashion-MNIST
    "model.width": 48,
    "model.blocks": 1,
    "train.duration": "2000 steps",
    "log.every": "50 steps",
    "eval.every": "500 steps",
}
SMALL_PRIOR = {
    "model.features": 40,
    "model.layers": 5,
    "model.embedding": 32,
    "model.dropout": 0.1,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup": 100,
    "train.duration": "2000 steps",
    "train.ema": 0.995,
    "log.every": "50 steps",
    "eval.every": "500 steps",
}
SHORTER = {"train.duration": "1400 steps", "eval.every": "700 steps"}
USE = ("test/codes_used_top", "test/codes_used_bottom", "test/perplexity_top", "test/perplexity_bottom")


def stages(name: str, data: str) -> dict[str, Row]:
    """The three runs of a data set."""
    codes = f"codes:{WORKDIRS}/{name}/autoencoder"
    return {
        f"{name}/autoencoder": Row("vqvae2_cifar10", ("test/elbo_bits_per_dim", *USE), {"data.name": data, **SMALL}),
        f"{name}/top": Row("vqvae2_cifar10_top", "test/nll", {"data.name": codes, **SMALL_PRIOR}),
        f"{name}/bottom": Row(
            "vqvae2_cifar10_bottom",
            ("test/nll", "test/image_nll_bits_per_dim"),
            {"data.name": codes, "data.options.top": f"{WORKDIRS}/{name}/top", **SMALL_PRIOR, **SHORTER},
        ),
    }


STAGES = {
    "cifar10": stages("cifar10", "npz:cifar10_subset.npz"),
    "fashion_mnist": stages("fashion_mnist", "fashion_mnist"),
}
ROWS = {name: row for rows in STAGES.values() for name, row in rows.items()}

if __name__ == "__main__":
    sys.argv[1:] = [run for name in sys.argv[1:] for run in STAGES.get(name, [name])]
    main(Path(__file__).parent, ROWS)
