"""Gated PixelCNN on the digits, thresholded.

`dgm train --config=gated_pixelcnn_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="gated_pixelcnn", features=16, layers=4, first=5, head=64, dropout=0.5)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "weight_decay": 0.1})
    config.data.transforms = ("threshold",)
    config.train.update(duration="60 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "5 epochs"
    config.checkpoint.update(every="5 epochs", best="valid/nll")
    return finish(config, arg, features=4, layers=2, head=4)
