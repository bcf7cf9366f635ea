"""GAN on the digits: a DCGAN-style generator and critic, non-saturating loss."""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="gan", channels=32)
    config.objective.update(name="non_saturating", r1=0.1)
    config.optimizer.update(learning_rate=1e-3, b1=0.5)
    config.data.transforms = ("dequantize", "symmetric")
    config.train.update(duration="150 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    return finish(config, arg, channels=8, latent=4)
