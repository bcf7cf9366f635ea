"""VAE with 2x200 units and 50 latents on MNIST, binarized anew whenever an image is seen; trained as IWAE for k > 1.

`dgm train --config=vae_mnist`; with --config.objective.k=5 IWAE. Burda et al. 2016 train on 9,600 images more.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=50, hidden=(200, 200))
    config.objective.update(name="iwae", k=1, gradient="dreg")
    config.optimizer.update(learning_rate=1e-3, schedule="linear", eps=1e-4)
    config.data.update(name="mnist", transforms=("resample",))
    config.train.update(duration="1000 epochs", per_dispatch=20, ema=0.9995)
    config.log.every = "10 epochs"
    config.eval.update(every="50 epochs", batch=100, k=50, test_k=5000, chunk=50, labels=True)
    config.checkpoint.update(every="20 epochs", best="valid/iwae_50")
    return finish(config, arg, latent=2, hidden=(16,))
