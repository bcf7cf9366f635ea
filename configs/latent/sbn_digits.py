"""Sigmoid belief network on the digits, thresholded, by VIMCO.

`dgm train --config=sbn_digits`. Other estimators for the same model:
`--config.objective.name=reweighted_wake_sleep` or `concrete`.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="sbn", latent=(200, 200))
    config.objective.update(name="vimco", k=10)
    config.optimizer.update(learning_rate=3e-3, schedule="cosine")
    config.data.transforms = ("threshold",)
    config.train.update(duration="300 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "20 epochs"
    config.eval.update(every="100 epochs", k=100, test_k=1000)
    return finish(config, arg, latent=(8, 8))
