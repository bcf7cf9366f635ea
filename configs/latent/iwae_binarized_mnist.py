"""VAE with 2x200 units and 50 latents, trained as IWAE k=5, on fixed-binarization MNIST.

`dgm train --config=iwae_binarized_mnist`: 12 minutes on two CPU cores; at most 87.8 nats (k = 5000)
(experiments/binarized_mnist/iwae_5).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=50, hidden=(200, 200))
    config.objective.update(name="iwae", k=5, gradient="dreg")
    config.optimizer.update(learning_rate=2e-3, schedule="linear", eps=1e-4)
    config.data.name = "binarized_mnist"
    config.train.update(duration="300 epochs", per_dispatch=20, ema=0.9995)
    config.log.every = "5 epochs"
    config.eval.update(every="20 epochs", batch=100, k=50, test_k=5000, chunk=50)
    config.checkpoint.update(every="20 epochs", best="valid/iwae_50")
    return finish(config, arg, latent=2, hidden=(16,))
