"""Orderless NADE with two layers on the digits, thresholded; an ensemble of 16 orders (EoNADE).

`dgm train --config=deep_nade_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="deep_nade", hidden=(500, 500), orders=16)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "weight_decay": 0.1})
    config.data.transforms = ("threshold",)
    config.train.update(duration="1000 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "250 epochs"
    return finish(config, arg, hidden=(16, 16), orders=2)
