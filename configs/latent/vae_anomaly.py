"""VAE with 2x200 units and 50 latents of Fashion-MNIST, thresholded, that is to notice the digits of MNIST.

`dgm train --config=vae_anomaly`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=50, hidden=(200, 200))
    config.objective.name = "elbo"
    config.optimizer.update(learning_rate=1e-3, schedule="linear")
    config.data.update(name="fashion_mnist", transforms=("threshold",))
    config.train.update(duration="50 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "1 epoch"
    config.eval.update(every="10 epochs", ood="mnist")
    config.checkpoint.every = "10 epochs"
    return finish(config, arg, latent=2, hidden=(16,))
