"""VQ-VAE-2 on Fashion-MNIST: 14x14 codes under 7x7.

`dgm train --config=vqvae2_fashion_mnist`, then `vqvae2_fashion_mnist_top` and `vqvae2_fashion_mnist_bottom`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vqvae", scales=(2, 2), codes=256, latent=32, width=64, blocks=2)
    config.objective.name = "vector_quantization"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="fashion_mnist", batch=64)
    config.train.update(duration="20 epochs", per_dispatch=10)
    config.log.every = "100 steps"
    config.eval.update(every="5 epochs", test_k=1)
    config.checkpoint.every = "500 steps"
    return finish(config, arg, codes=8, latent=4, width=8, blocks=1)
