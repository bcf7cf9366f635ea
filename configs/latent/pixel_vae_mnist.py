"""PixelVAE of MNIST's grey levels, at a size for a CPU: mixtures of logistics, from a PixelCNN of 16 features.

`dgm train --config=pixel_vae_mnist`; a row of experiments/blur.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="pixel_vae", latent=32, hidden=(200, 200), context=8)
    config.model.update(features=16, layers=3, first=5, head=32, output="logistic", components=5, levels=256)
    config.objective.update(name="beta_vae", free=0.5)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", clip=100.0)
    config.data.update(name="mnist", batch=32)
    config.train.update(duration="10 epochs", per_dispatch=10, ema=0.999)
    config.log.every = "200 steps"
    config.eval.update(test_k=1, examples=2000, metric_samples=500, sharpness=True)
    config.checkpoint.every = "500 steps"
    return finish(config, arg, latent=2, hidden=(16,), context=2, features=4, layers=1, head=4, components=2)
