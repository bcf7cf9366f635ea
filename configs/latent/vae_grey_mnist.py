"""VAE of MNIST's grey levels, dequantized, with Gaussian pixels of one learned scale.

`dgm train --config=vae_grey_mnist`; a row of experiments/blur, with what makes its samples comparable.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=32, hidden=(200, 200), activation="relu")
    config.model.update(output="gaussian", components=1, shared_scale=True)
    config.objective.update(name="beta_vae", warmup=2000)  # else the codes are dropped before the net can read them
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", clip=100.0)
    config.data.update(name="mnist", transforms=("dequantize", "symmetric"))
    config.train.update(duration="50 epochs", per_dispatch=10, ema=0.999)
    config.log.every = "5 epochs"
    config.eval.update(test_k=1, examples=2000, sharpness=True)
    config.checkpoint.every = "2000 steps"
    return finish(config, arg, latent=2, hidden=(16,))
