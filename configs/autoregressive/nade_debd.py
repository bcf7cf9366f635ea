"""NADE on the binary density-estimation benchmarks; nltcs by default.

`dgm train --config=nade_debd --config.data.name=npz:debd/plants.npz`: within a minute; 6.00 nats on nltcs, 12.43 on
plants, 9.67 on mushrooms, 51.53 on jester (experiments/tabular).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="nade", hidden=200, activation="relu")
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "weight_decay": 0.3})
    config.data.name = "npz:debd/nltcs.npz"
    config.train.update(duration="10000 steps", per_dispatch=50, ema=0.999)
    config.log.every = "500 steps"
    config.eval.every = "500 steps"
    config.checkpoint.update(every="500 steps", best="valid/nll")
    return finish(config, arg, hidden=16)
