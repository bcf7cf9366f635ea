"""Gated PixelCNN over the codes of `vqvae_digits`: the second of two stages.

`dgm train --config=vqvae_digits_prior`, after `dgm train --config=vqvae_digits`.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    options = {"embedding": 16, "features": 32, "layers": 4, "first": 3, "head": 64, "dropout": 0.5}
    config.model.update(name="gated_pixelcnn", output="categorical", levels=32, **options)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "weight_decay": 0.1})
    config.data.name = "codes:runs/vqvae_digits"
    config.data.options = ConfigDict({"level": "top"})
    config.train.update(duration="40 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    config.eval.every = "5 epochs"
    config.checkpoint.update(every="5 epochs", best="valid/nll")
    return finish(config, arg, embedding=2, features=4, layers=2, head=4, levels=8)
