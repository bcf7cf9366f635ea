"""What is missing filled in: `python -m experiments.missing.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

METRICS = ("test/impute_mse", "test/mean_impute_mse")
ROWS = {
    "miwae": Row("miwae_mnist", METRICS),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
