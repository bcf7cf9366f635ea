"""Fixed-binarization MNIST: `python -m experiments.binarized_mnist.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

ROWS = {
    "made_1layer": Row("made_binarized_mnist", "test/nll", {}, "88.40 (Germain et al. 2015, one mask)"),
    "mixture_500": Row("mixture_binarized_mnist", "test/nll", {"seeds": 3}, "137.64 (Larochelle & Murray 2011)"),
    "iwae_5": Row("iwae_binarized_mnist", "test/iwae_5000", {}, "88.71 (the VAE of Burda et al. 2016)"),
    "vae": Row("vae_binarized_mnist", "test/iwae_1000", {}, "88.71 (k = 5000; Burda et al. 2016)"),
    "rbm_500": Row("rbm_binarized_mnist", "test/nll", {}, "86.34 (CD-25, Salakhutdinov & Murray 2008)"),
    "hmm": Row("hmm_binarized_mnist", "test/nll"),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
