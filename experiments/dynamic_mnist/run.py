"""Dynamically binarized MNIST: `python -m experiments.dynamic_mnist.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

BOUND = "test/iwae_5000"
LABELS = tuple(f"test/{probe}_{of}_accuracy" for probe in ("linear", "knn_5") for of in ("codes", "pca_50"))
ANNEALED = {"eval.ais": 500, "eval.ais_examples": 100, "eval.bdmc": 20}
OF_AIS = ("test/ais_500", "test/ais_500_iwae_5000", "test/ais_500_gain", "test/ais_500_gap")
CONDITIONAL = BOUND, "test/conditional_accuracy", "test/classifier_accuracy"
LARGE = {  # what a GPU trains in minutes
    "model.blocks": (0, 2, 3),
    "model.width": 64,
    "model.middle": 32,
    "model.latent": 8,
    "optimizer.learning_rate": 1.5e-3,
    "data.batch": 200,
    "train.duration": "21 epochs",
    "train.per_dispatch": 10,
    "log.every": "1 epoch",
    "eval.every": "7 epochs",
    "eval.batch": 200,
    "eval.test_k": 200,
    "eval.chunk": 20,
    "checkpoint.every": "7 epochs",
}

ROWS = {
    "vae_200_200": Row("vae_mnist", (BOUND, *OF_AIS, *LABELS), ANNEALED, "86.76 (VAE, Burda et al. 2016)"),
    "iwae_5": Row(  # two hours of two slow cores
        "vae_mnist", BOUND, {"objective.k": 5, "train.duration": "750 epochs"}, "85.54 (IWAE k = 5, Burda et al. 2016)"
    ),
    "iwae_50": Row(
        "vae_mnist",
        BOUND,
        {
            "objective.k": 50,
            "train.duration": "290 epochs",
            "eval.every": "96 epochs",
            "checkpoint.every": "96 epochs",
            "log.every": "14 epochs",
        },
        "84.78 (IWAE k = 50, Burda et al. 2016)",
    ),
    "hierarchical": Row("top_down_vae_mnist", "test/iwae_200", LARGE),
    "conditional": Row("conditional_vae_mnist", CONDITIONAL),
    "conditional_beta_4": Row(
        "conditional_vae_mnist", CONDITIONAL, {"objective.name": "beta_vae", "objective.beta": 4.0}
    ),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
