"""NADE with 500 units on fixed-binarization MNIST.

`dgm train --config=nade_binarized_mnist`: 7 minutes on two CPU cores; 86.9 nats, exact
(experiments/binarized_mnist/nade_500).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="nade", hidden=500, activation="relu")
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "weight_decay": 0.2})
    config.data.name = "binarized_mnist"
    config.train.update(duration="20 epochs", per_dispatch=10, ema=0.999)
    config.eval.update(every="1 epoch", batch=500)
    config.checkpoint.update(every="1 epoch", best="valid/nll")
    return finish(config, arg, hidden=16)
