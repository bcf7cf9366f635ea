"""MNIST and Fashion-MNIST told apart: `python -m experiments.anomaly.run [name ...]` from the root of the checkout."""

from pathlib import Path

from dgm_jax.tasks.anomaly import SCORES
from experiments.study import Row, main

METRICS = tuple(f"test/auroc_{score}" for score in SCORES)
OF_VAE = tuple(metric for metric in METRICS if metric != "test/auroc_surprise")  # which asks for conditionals
REVERSE = {"data.name": "mnist", "eval.ood": "fashion_mnist"}
ROWS = {
    "of_fashion_mnist": Row("pixelcnn_anomaly", METRICS),
    "of_mnist": Row("pixelcnn_anomaly", METRICS, REVERSE),
    "vae_of_fashion_mnist": Row("vae_anomaly", OF_VAE),
    "vae_of_mnist": Row("vae_anomaly", OF_VAE, REVERSE),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
