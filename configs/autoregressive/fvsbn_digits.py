"""A fully visible sigmoid belief network (FVSBN) on the digits, thresholded: MADE without a hidden layer.

`dgm train --config=fvsbn_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="made", hidden=())
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-2, "schedule": "cosine", "weight_decay": 0.1})
    config.data.transforms = ("threshold",)
    config.train.update(duration="100 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "50 epochs"
    return finish(config, arg)
