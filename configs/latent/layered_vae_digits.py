"""Ladder VAE of two layers on the digits, thresholded, with a warm-up of the rate.

`dgm train --config=layered_vae_digits`; with --config.model.inference=bottom_up the two layers of the IWAE paper.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="layered_vae", latent=(10, 5), hidden=((200, 200), (100, 100)), inference="ladder")
    config.objective.update(name="beta_vae", warmup=500)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine")
    config.data.transforms = ("threshold",)
    config.train.update(duration="300 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "20 epochs"
    config.eval.update(every="100 epochs", test_k=1000)
    return finish(config, arg, latent=(2, 1), hidden=((8,), (6,)))
