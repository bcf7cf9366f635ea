"""Multi-scale PixelRNN on the digits, thresholded: 4x4 pixels first, then 8x8.

`dgm train --config=multiscale_pixelrnn_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="multiscale_pixelrnn", scale=2, features=32, layers=1, first=5, dropout=0.5)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "weight_decay": 0.3})
    config.data.transforms = ("threshold",)
    config.train.update(duration="50 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "25 epochs"
    return finish(config, arg, features=4, first=3, head=4, context=4)
