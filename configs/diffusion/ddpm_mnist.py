"""DDPM with a small U-Net on MNIST, dequantized.

`dgm train --config=ddpm_mnist`: 13 minutes on two CPU cores; 2.58 bits/dim, a bound (experiments/mnist/ddpm). Its loss
weighs the noise levels for the sake of samples, not of this bound.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="ddpm", channels=16, multipliers=(1, 2, 4), schedule="cosine", steps=1000)
    config.objective.update(
        name="denoising", schedule=config.model.get_ref("schedule"), steps=config.model.get_ref("steps")
    )
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="mnist", batch=64, transforms=("dequantize", "symmetric"))
    config.train.update(duration="3000 steps", per_dispatch=10, ema=0.995)
    config.log.every = "100 steps"
    config.eval.update(batch=50, test_k=1, examples=100)
    config.checkpoint.every = "1000 steps"
    return finish(config, arg, channels=8, multipliers=(1, 2), steps=10, sample_steps=4)
