"""A small PixelCNN++ on 15,000 images of CIFAR-10, cifar10_subset.npz in the data directory.

`dgm train --config=pixelcnnpp_cifar10`: hours on two CPU cores. Published numbers are of all 50,000 training images.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="pixelcnnpp", features=32, blocks=2, stages=3, components=10)
    config.objective.name = "mle"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="npz:cifar10_subset.npz", batch=32)
    config.train.update(duration="8 epochs", per_dispatch=10, ema=0.998)
    config.log.every = "100 steps"
    config.eval.update(every="2 epochs", batch=50, samples=16)
    config.checkpoint.every = "500 steps"
    return finish(config, arg, features=4, blocks=1, stages=2, components=2)
