"""NADE on the digits, thresholded.

`dgm train --config=nade_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="nade", hidden=200, activation="relu")
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "weight_decay": 0.3})
    config.data.transforms = ("threshold",)
    config.train.update(duration="200 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "50 epochs"
    return finish(config, arg, hidden=16)
