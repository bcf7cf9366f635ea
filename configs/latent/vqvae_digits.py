"""VQ-VAE on the digits: 4x4 codes of 32, and a discretized logistic for each pixel.

`dgm train --config=vqvae_digits`, then `vqvae_digits_prior`, whose codes tighten the bound.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vqvae", scales=(2,), codes=32, latent=8, width=32, blocks=1, levels=17)
    config.objective.update(name="vector_quantization", decay=0.95)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine")
    config.train.update(duration="100 epochs", per_dispatch=10)
    config.log.every = "10 epochs"
    config.eval.update(every="25 epochs", test_k=1)
    return finish(config, arg, codes=8, width=8)
