"""CIFAR-10, of which 15,000 images are trained on: `python -m experiments.cifar10.run [name ...]` from the checkout."""

from pathlib import Path

from experiments.study import Row, main

SMALL = {  # what two slow cores train in an hour
    "model.features": 24,
    "model.blocks": 1,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup": 200,
    "data.batch": 16,
    "train.duration": "4 epochs",
    "eval.every": "1 epoch",
}

ROWS = {
    "pixelcnnpp": Row("pixelcnnpp_cifar10", "test/nll_bits_per_dim", SMALL),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
