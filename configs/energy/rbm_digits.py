"""RBM on the digits, thresholded, by persistent contrastive divergence.

`dgm train --config=rbm_digits`: 25 s on two CPU cores; 16.5 nats, estimated by AIS (experiments/digits/rbm).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="rbm", hidden=200)
    config.objective.update(name="pcd", k=1, chains=500)
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 3e-3, "schedule": "linear", "weight_decay": 1e-3})
    config.data.transforms = ("threshold",)
    config.train.update(duration="10000 steps", per_dispatch=50, ema=0.999)
    config.log.every = "10 epochs"
    config.eval.every = "100 epochs"
    return finish(config, arg, hidden=8, sample_steps=10, ais_betas=20, ais_chains=4)
