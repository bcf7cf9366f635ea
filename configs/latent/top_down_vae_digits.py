"""Top-down VAE of three resolutions on the digits, thresholded.

`dgm train --config=top_down_vae_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="top_down_vae", blocks=(0, 2, 2), width=32, middle=16, latent=4)
    config.objective.update(name="beta_vae", warmup=200)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", clip=10.0)
    config.data.transforms = ("threshold",)
    config.train.update(duration="100 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "5 epochs"
    config.eval.update(every="50 epochs", test_k=1000)
    return finish(config, arg, blocks=(0, 1), width=4, middle=4, latent=1)
