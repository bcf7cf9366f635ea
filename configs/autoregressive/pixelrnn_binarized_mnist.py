"""PixelRNN with one layer of Diagonal BiLSTMs on fixed-binarization MNIST; van den Oord et al. 2016 have 80.75 nats.

`dgm train --config=pixelrnn_binarized_mnist`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="pixelrnn", kind="diagonal", features=32, layers=1)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 2e-3, "schedule": "cosine", "clip": 1.0})
    config.data.update(name="binarized_mnist", batch=50)
    config.train.update(duration="12 epochs", per_dispatch=10, ema=0.999)
    config.eval.update(every="3 epochs", batch=500)
    config.checkpoint.every = "1 epoch"
    return finish(config, arg, features=4, first=3, head=4)
