"""VAE with 20 categorical latents on the digits, thresholded, by the Gumbel-softmax relaxation.

`dgm train --config=categorical_vae_digits`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="categorical_vae", latent=20, categories=10, hidden=(200, 200))
    config.objective.update(name="concrete", kind="soft", temperature=1.0, rate=1e-3, least=0.3)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine")
    config.data.transforms = ("threshold",)
    config.train.update(duration="300 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "50 epochs"
    config.eval.update(every="100 epochs", k=100, test_k=1000)
    return finish(config, arg, latent=2, categories=3, hidden=(16,))
