"""Gated PixelCNN on fixed-binarization MNIST, at a size for a CPU.

`dgm train --config=gated_pixelcnn_binarized_mnist`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="gated_pixelcnn", features=24, layers=7, first=15, kernel=5, head=64)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 3e-3, "schedule": "cosine", "clip": 1.0})
    config.data.update(name="binarized_mnist", batch=16)
    config.train.update(duration="12 epochs", per_dispatch=5, ema=0.999)
    config.log.every = "1000 steps"
    config.eval.update(every="2 epochs", batch=200)
    config.checkpoint.every = "1000 steps"
    return finish(config, arg, features=4, layers=2, head=4)
