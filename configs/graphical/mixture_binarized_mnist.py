"""Mixture of 500 Bernoullis on fixed-binarization MNIST, by EM.

`dgm train --config=mixture_binarized_mnist`: 2 minutes on two CPU cores for three seeds; 125.7 nats, exact
(experiments/binarized_mnist/mixture_500).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="mixture", components=500)
    config.objective.name = "em"
    config.optimizer = ConfigDict({"name": "em", "every": "1 epoch"})
    config.data.update(name="binarized_mnist", batch=1000)
    config.train.update(duration="40 epochs", per_dispatch=10)
    config.eval.update(every="5 epochs", batch=1000)
    return finish(config, arg, components=4)
