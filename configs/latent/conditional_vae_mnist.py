"""VAE with 2x200 units on MNIST that is told the digit; its samples are named by a classifier of the data.

`dgm train --config=conditional_vae_mnist`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=20, hidden=(200, 200), classes=10)
    config.objective.name = "elbo"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="mnist", transforms=("resample",), cond=True)
    config.train.update(duration="100 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "5 epochs"
    config.eval.update(
        every="20 epochs", batch=100, k=50, test_k=5000, chunk=50, samples=100, metric_samples=10000, labels=True
    )
    return finish(config, arg, latent=2, hidden=(16,))
