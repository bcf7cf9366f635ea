"""RealNVP on the digits, dequantized and logit-transformed."""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="realnvp")
    config.objective.name = "mle"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.transforms = ("dequantize", "logit(0.05)")
    config.train.update(duration="100 epochs", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    return finish(config, arg, width=8, couplings=2)
