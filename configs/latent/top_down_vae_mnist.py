"""Top-down VAE of three resolutions on MNIST, binarized anew whenever an image is seen, at a size for a CPU.

`dgm train --config=top_down_vae_mnist`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="top_down_vae", blocks=(0, 3, 4), width=32, middle=16, latent=4)
    config.objective.update(name="beta_vae", warmup=2000)
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup=500, clip=10.0)
    config.data.update(name="mnist", transforms=("resample",), batch=50)
    config.train.update(duration="20 epochs", per_dispatch=5, ema=0.999)
    config.log.every = "500 steps"
    config.eval.update(every="4 epochs", batch=100, k=1, test_k=100, chunk=10)
    config.checkpoint.every = "500 steps"
    return finish(config, arg, blocks=(0, 0, 1), width=4, middle=4, latent=1)
