"""Convolutional VAE on the digits, thresholded.

`dgm train --config=vae_conv_digits`: 30 s on two CPU cores; at most 17.0 nats (k = 1000)
(experiments/digits/vae_conv).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", net="conv", latent=16, hidden=(32, 64), activation="elu")
    config.objective.name = "elbo"
    config.optimizer.update(learning_rate=3e-3, schedule="cosine")
    config.data.transforms = ("threshold",)
    config.train.update(duration="200 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.update(every="50 epochs", test_k=1000)
    return finish(config, arg, latent=2, hidden=(8,))
