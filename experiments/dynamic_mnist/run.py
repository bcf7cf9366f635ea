"""Dynamically binarized MNIST: `python -m experiments.dynamic_mnist.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

ROWS = {
    "vae_200_200": Row("vae_mnist", "test/iwae_5000", {}, "86.76 (Burda et al. 2016)"),
    "iwae_5": Row("vae_mnist", "test/iwae_5000", {"objective.k": 5}, "85.54 (Burda et al. 2016)"),
    "iwae_50": Row("vae_mnist", "test/iwae_5000", {"objective.k": 50}, "84.78 (Burda et al. 2016)"),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
