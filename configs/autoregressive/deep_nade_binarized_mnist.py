"""Orderless NADE with two layers of 500 units on fixed-binarization MNIST; an ensemble of 16 orders (EoNADE).

`dgm train --config=deep_nade_binarized_mnist`; with --config.model.hidden="(500,)" --config.model.orders=128 the one
layer of 128 orders.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="deep_nade", hidden=(500, 500), orders=16)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "weight_decay": 0.02})
    config.data.update(name="binarized_mnist", batch=200)
    config.train.update(duration="600 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "10 epochs"
    config.eval.update(batch=500)
    config.checkpoint.every = "25 epochs"
    return finish(config, arg, hidden=(16, 16), orders=2)
