"""Gated PixelCNN over the bottom codes of `vqvae2_cifar10`, given the top ones.

`dgm train --config=vqvae2_cifar10_bottom`, after `vqvae2_cifar10` and `vqvae2_cifar10_top`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="gated_pixelcnn", output="categorical", levels=256, map_codes=256, map_scale=2, context=64)
    config.model.update(embedding=64, features=64, layers=8, first=5, head=128, dropout=0.2)
    config.objective.name = "mle"
    config.optimizer.update(learning_rate=1e-3, schedule="cosine")
    config.data.update(name="codes:runs/vqvae2_cifar10", batch=64, cond=True)
    config.data.options = ConfigDict({"level": "bottom", "top": "runs/vqvae2_cifar10_top"})
    config.train.update(duration="7000 steps", per_dispatch=10, ema=0.998)
    config.log.every = "100 steps"
    config.eval.every = "1000 steps"
    config.checkpoint.update(every="1000 steps", best="valid/nll")
    return finish(config, arg, embedding=2, features=4, layers=2, head=4, levels=8, map_codes=8, context=4)
