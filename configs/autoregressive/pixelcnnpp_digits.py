"""PixelCNN++ on the digits, with their 17 grey levels as they are.

`dgm train --config=pixelcnnpp_digits`: 3 minutes of CPU time; 1.73 bits/dim, exact.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="pixelcnnpp", features=32, blocks=2, stages=2, components=5, levels=17, dropout=0.5)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "weight_decay": 0.3})
    config.train.update(duration="40 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "20 epochs"
    return finish(config, arg, features=4, blocks=1, stages=1, components=2, dropout=0.0)
