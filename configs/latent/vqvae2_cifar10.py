"""VQ-VAE-2 on 15,000 images of CIFAR-10, cifar10_subset.npz in the data directory: 16x16 codes under 8x8.

`dgm train --config=vqvae2_cifar10`, then `vqvae2_cifar10_top` and `vqvae2_cifar10_bottom`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vqvae", scales=(2, 2), codes=256, latent=32, width=64, blocks=2)
    config.objective.name = "vector_quantization"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="npz:cifar10_subset.npz", batch=64)
    config.train.update(duration="5000 steps", per_dispatch=10)
    config.log.every = "100 steps"
    config.eval.update(every="1000 steps", test_k=1)
    config.checkpoint.every = "500 steps"
    return finish(config, arg, codes=8, latent=4, width=8, blocks=1)
