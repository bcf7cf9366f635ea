"""VAE on the digits, thresholded: the default of `dgm train`.

`dgm train --config=vae_digits`: 20 s on two CPU cores; at most 16.7 nats (k = 1000) (experiments/digits/vae).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="vae", latent=10, hidden=(200, 200))
    config.objective.name = "elbo"
    config.optimizer.update(learning_rate=2e-3, schedule="cosine")
    config.data.transforms = ("threshold",)
    config.train.update(duration="300 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "20 epochs"
    config.eval.update(every="100 epochs", test_k=1000)
    return finish(config, arg, latent=2, hidden=(16,))


def sweep() -> Iterator[dict[str, Any]]:
    """Numbers of latents."""
    for latent in (2, 5, 10, 20):
        yield {"model.latent": latent}
