"""CIFAR-10, of which 15,000 images are trained on: `python -m experiments.cifar10.run [name ...]` from the checkout."""

from pathlib import Path

from experiments.study import Row, main

ROWS = {
    "pixelcnnpp": Row("pixelcnnpp_cifar10", "test/nll_bits_per_dim"),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
