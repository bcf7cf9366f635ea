"""MADE on the binary density-estimation benchmarks; nltcs by default.

`dgm train --config=made_debd --config.data.name=npz:debd/plants.npz`: within a minute; 5.99 nats on nltcs, 12.29 on
plants, 9.55 on mushrooms, 51.45 on jester (experiments/tabular).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="made", hidden=(500, 500), masks=4, random_order=True, direct=True, dropout=0.3)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "weight_decay": 0.1})
    config.data.name = "npz:debd/nltcs.npz"
    config.train.update(duration="10000 steps", per_dispatch=50, ema=0.999)
    config.log.every = "500 steps"
    config.eval.every = "500 steps"
    config.checkpoint.update(every="500 steps", best="valid/nll")
    return finish(config, arg, hidden=(16, 16), masks=2)
