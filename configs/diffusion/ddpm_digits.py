"""DDPM with a small U-Net on the digits, dequantized.

`dgm train --config=ddpm_digits`: 3 minutes on two CPU cores; at most 1.97 bits/dim (experiments/digits/ddpm).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="ddpm", channels=32, schedule="cosine", steps=1000)
    config.objective.update(
        name="denoising", schedule=config.model.get_ref("schedule"), steps=config.model.get_ref("steps")
    )
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.transforms = ("dequantize", "symmetric")
    config.train.update(duration="120 epochs", per_dispatch=10, ema=0.995)
    config.log.every = "10 epochs"
    config.eval.test_k = 1
    return finish(config, arg, channels=8, multipliers=(1,), attention=False, steps=10, sample_steps=4)
