"""PixelVAE on the digits, thresholded; half a nat of each latent is free, so that the PixelCNN does not go without z.

`dgm train --config=pixel_vae_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="pixel_vae", latent=10, context=8, features=16, layers=2, first=3, head=32)
    config.objective.update(name="beta_vae", free=0.5)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", clip=10.0)
    config.data.transforms = ("threshold",)
    config.train.update(duration="100 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "5 epochs"
    config.eval.update(every="25 epochs", test_k=1000)
    return finish(config, arg, latent=2, hidden=(16,), context=2, features=4, layers=1, head=4)
