"""Beta-VAE with 2x200 units on MNIST, binarized anew whenever an image is seen; its sweep is a rate-distortion curve.

`dgm train --config=beta_vae_mnist --config.objective.beta=4`, or `dgm sweep --config=beta_vae_mnist`
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from dgm_jax.config import base, finish

BETAS = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0)


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=50, hidden=(200, 200))
    config.objective.update(name="beta_vae", beta=1.0)
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="mnist", transforms=("resample",))
    config.train.update(duration="100 epochs", per_dispatch=20, ema=0.999)
    config.log.every = "5 epochs"
    config.eval.update(every="25 epochs", batch=100, chunk=50)
    return finish(config, arg, latent=2, hidden=(16,))


def sweep() -> Iterator[dict[str, float]]:
    """The points of the curve."""
    for beta in BETAS:
        yield {"objective.beta": beta}
