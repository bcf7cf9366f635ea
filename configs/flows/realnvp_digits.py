"""RealNVP on the digits, dequantized and logit-transformed.

`dgm train --config=realnvp_digits`: 1 minute on two CPU cores; 2.05 bits/dim, a bound (experiments/digits/realnvp).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="realnvp", width=16, depth=1)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "weight_decay": 0.1})
    config.data.transforms = ("dequantize", "logit(0.05)")
    config.train.update(duration="1500 steps", per_dispatch=10, ema=0.99)
    config.log.every = "10 epochs"
    return finish(config, arg, width=8, couplings=2, scales=1)
