"""A small PixelCNN of Fashion-MNIST in grey levels that is to notice the digits of MNIST.

`dgm train --config=pixelcnn_anomaly`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="pixelcnn", features=16, layers=3, head=32)
    config.model.update(output="logistic", components=5, levels=256)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 2e-3, "schedule": "cosine", "clip": 1.0})
    config.data.update(name="fashion_mnist", batch=50)
    config.train.update(duration="3 epochs", per_dispatch=10, ema=0.999)
    config.log.every = "200 steps"
    config.eval.update(every="1 epoch", examples=2000, ood="mnist")
    config.checkpoint.every = "500 steps"
    return finish(config, arg, features=4, layers=1, head=4)
