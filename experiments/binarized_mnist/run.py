"""Fixed-binarization MNIST: `python -m experiments.binarized_mnist.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

PIXELCNN = "81.30 (PixelCNN, van den Oord et al. 2016)"
BEST = {"checkpoint.best": "valid/nll", "eval.batch": 500}
LARGE = {  # what a GPU trains in minutes
    "model.features": 48,
    "model.layers": 10,
    "model.first": 7,
    "model.head": 96,
    "model.dropout": 0.2,
    "model.bf16": True,
    "optimizer.learning_rate": 2e-3,
    "data.batch": 50,
    "train.duration": "30 epochs",
    "train.ema": 0.9995,
    "eval.every": "5 epochs",
    "checkpoint.every": "5 epochs",
    **BEST,
}
TWO_LAYERS = {
    "model.layers": 2,
    "model.features": 48,
    "optimizer.learning_rate": 3e-3,
    "data.batch": 100,
    "train.duration": "18 epochs",
    "eval.every": "6 epochs",
    "checkpoint.every": "6 epochs",
    **BEST,
}

ROWS = {
    "made_1layer": Row("made_binarized_mnist", "test/nll", {}, "88.40 (Germain et al. 2015, one mask)"),
    "mixture_500": Row("mixture_binarized_mnist", "test/nll", {"seeds": 3}, "137.64 (Larochelle & Murray 2011)"),
    "iwae_5": Row("iwae_binarized_mnist", "test/iwae_5000", {}, "87.10 (IWAE k = 50, Burda et al. 2016)"),
    "vae": Row("vae_binarized_mnist", "test/iwae_1000", {}, "88.71 (k = 5000; Burda et al. 2016)"),
    "rbm_500": Row("rbm_binarized_mnist", "test/nll", {}, "86.34 (CD-25, Salakhutdinov & Murray 2008)"),
    "hmm": Row("hmm_binarized_mnist", "test/nll"),
    "nade_500": Row("nade_binarized_mnist", "test/nll", {}, "88.33 (Uria et al. 2016)"),
    "eonade_1x500_128": Row(
        "deep_nade_binarized_mnist",
        "test/nll",
        {
            "model.hidden": (500,),
            "model.orders": 128,
            "optimizer.weight_decay": 0.0,
            "optimizer.clip": 5.0,
            "train.duration": "1600 epochs",
            "log.every": "20 epochs",
            "checkpoint.every": "400 epochs",
        },
        "87.71 (Uria et al. 2014)",
    ),
    "eonade_2x500_16": Row("deep_nade_binarized_mnist", "test/nll", {}, "85.96 (Uria et al. 2014)"),
    "made_1x8000": Row("made_masks_binarized_mnist", "test/nll", {}, "88.04 (Germain et al. 2015, 32 masks)"),
    "pixelcnn_gated": Row("gated_pixelcnn_binarized_mnist", "test/nll", LARGE, PIXELCNN),
    "pixelcnn_gated_small": Row("gated_pixelcnn_binarized_mnist", "test/nll", {}, PIXELCNN),
    "pixelrnn_diagonal": Row("pixelrnn_binarized_mnist", "test/nll", TWO_LAYERS, "80.75 (van den Oord et al. 2016)"),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
