"""VAE with 2x200 units and 50 latents of Fashion-MNIST in grey levels that is to notice the digits of MNIST.

`dgm train --config=vae_anomaly`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=50, hidden=(200, 200), activation="relu")
    config.model.update(output="logistic", levels=256)
    config.objective.name = "elbo"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", clip=100.0)
    config.data.name = "fashion_mnist"
    config.train.update(duration="20 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "1 epoch"
    config.eval.update(every="5 epochs", examples=2000, ood="mnist")
    config.checkpoint.every = "5 epochs"
    return finish(config, arg, latent=2, hidden=(16,))
