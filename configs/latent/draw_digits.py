"""DRAW on the digits, thresholded.

`dgm train --config=draw_digits`; without attention `--config.model.read=0 --config.model.write=0`.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="draw", steps=8, latent=5, hidden=128, read=5, write=5)
    config.objective.name = "elbo"
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", clip=20.0)
    config.data.transforms = ("threshold",)
    config.train.update(duration="300 epochs", per_dispatch=50, ema=0.99)
    config.log.every = "20 epochs"
    config.eval.update(every="100 epochs", test_k=1000)
    return finish(config, arg, steps=3, latent=2, hidden=8)
