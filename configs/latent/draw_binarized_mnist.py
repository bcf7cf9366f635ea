"""DRAW with 2x2 reading and 5x5 writing filters on fixed-binarization MNIST.

`dgm train --config=draw_binarized_mnist`. Of the published model's 64 steps and 100 latents there are 16 and 20 here:
the others are --config.model.steps=64 --config.model.latent=100.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="draw", steps=16, latent=20, hidden=256, read=2, write=5)
    config.objective.name = "beta_vae"  # beta = 1: the ELBO, KL in closed form; one pass of the decoder, not two
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", clip=10.0)
    config.data.name = "binarized_mnist"
    config.train.update(duration="100 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "1 epoch"
    config.eval.update(every="5 epochs", batch=100, test_k=100)
    config.checkpoint.update(every="5 epochs", best="valid/elbo")
    return finish(config, arg, steps=3, latent=2, hidden=8)
