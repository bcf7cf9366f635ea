"""RealNVP on MNIST, dequantized and logit-transformed.

`dgm train --config=realnvp_mnist`: 11 minutes on two CPU cores; 1.62 bits/dim, a bound (experiments/mnist/realnvp). Its
samples are strokes with some digits among them: a coupling net of 16 channels is as much as a CPU trains.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="realnvp", width=16, depth=1)
    config.objective.name = "mle"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", clip=100.0)
    config.data.update(name="mnist", batch=64, transforms=("dequantize", "logit(0.05)"))
    config.train.update(duration="4000 steps", per_dispatch=10, ema=0.995)
    config.log.every = "100 steps"
    config.checkpoint.every = "1000 steps"
    return finish(config, arg, width=8, couplings=2)
