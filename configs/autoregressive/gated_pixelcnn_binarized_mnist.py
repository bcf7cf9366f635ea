"""Gated PixelCNN on fixed-binarization MNIST, at a size for a CPU.

`dgm train --config=gated_pixelcnn_binarized_mnist`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="gated_pixelcnn", features=32, layers=5, first=19, kernel=3, head=64)
    config.objective.name = "mle"
    config.optimizer = ConfigDict(
        {"name": "adam", "learning_rate": 3e-3, "schedule": "cosine", "warmup": 200, "clip": 50.0}
    )
    config.data.update(name="binarized_mnist", batch=16)
    config.train.update(duration="6 epochs", per_dispatch=5, ema=0.999)
    config.log.every = "1000 steps"
    config.eval.update(every="1 epoch", batch=200)
    config.checkpoint.every = "1000 steps"
    return finish(config, arg, features=4, layers=2, head=4)
