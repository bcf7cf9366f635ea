"""Grey-level MNIST: `python -m experiments.mnist.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

ROWS = {
    "realnvp": Row("realnvp_mnist", "test/nll_bits_per_dim", {}, "1.06 (in Grathwohl et al. 2019, a far larger net)"),
    "ddpm": Row("ddpm_mnist", "test/elbo_bits_per_dim"),
    "gan": Row("gan_mnist", "test/frechet_pca_32"),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
