"""HMM over the rows of the digits, thresholded, by EM.

`dgm train --config=hmm_digits`: 13 s on two CPU cores; 18.5 nats, exact (experiments/digits/hmm).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="hmm", states=128, strength=3.0, chain_strength=0.03)
    config.objective.name = "em"
    config.vectorize_seeds = False  # under vmap every step of the recursion would take its slow, exact way too
    config.optimizer = ConfigDict({"name": "em", "every": "1 epoch"})
    config.data.update(transforms=("threshold",), batch=1400)
    config.train.update(duration="60 epochs", per_dispatch=5)
    config.log.every = "5 epochs"
    config.eval.every = "20 epochs"
    return finish(config, arg, states=4)
