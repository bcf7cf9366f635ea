"""VAE with 2x200 units and 50 latents on the grey levels of MNIST, half of the pixels missing, trained as IWAE k=20.

`dgm train --config=miwae_mnist`, after MIWAE (Mattei & Frellsen 2019). The output is Gaussian with one scale for all
pixels: its mean is what a squared error asks for, and costs no sum over levels.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=50, hidden=(200, 200), output="gaussian", shared_scale=True)
    config.objective.update(name="iwae", k=20, gradient="dreg")
    config.optimizer.update(learning_rate=1e-3, schedule="linear", eps=1e-4)
    config.data.update(name="mnist", transforms=("dequantize",), missing=0.5)
    config.train.update(duration="30 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "1 epoch"
    config.eval.update(every="10 epochs", batch=100, k=20, test_k=500, chunk=50, impute=500)
    config.checkpoint.every = "5 epochs"
    return finish(config, arg, latent=2, hidden=(16,))
